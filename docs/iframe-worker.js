/* Browsers start no worker from file://. There the search's worker runs in a hidden frame, so that a site that lies on
   the disk can be searched. The offline plugin would load such a script from elsewhere; it leaves this one by its name. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      this.scope = this.frame.contentWindow
      this.started = new Promise(start => this.frame.addEventListener("load", start, { once: true }))
      const page = this.scope.document
      page.open()
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      page.write(`<script src="${new URL(url, location)}"><\/script>`)
      page.close()
    }

    postMessage(data) {
      this.started.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
