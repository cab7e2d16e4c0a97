"""A stand-in for the Hugging Face Hub on this machine: what huggingface_hub asks of it, and nothing more.

Repositories have branches and commits, and every commit keeps its files, so that an old revision stays what it was.
Small texts come within a commit, all else is uploaded as LFS before (xet must be off: `HF_HUB_DISABLE_XET=1`) and
downloaded through a redirect, as the real one does it.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import yaml


TOKEN = "hf_of_the_tests"
USER = "tester"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".png")
LARGEST_REGULAR = 5_000_000


class Refused(Exception):
    """An answer that is an error: status, `X-Error-Code` and `X-Error-Message`."""

    def __init__(self, status, code=None, message=None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: the hash that names it, its size, and whether it is LFS."""

    sha256: str
    oid: str
    size: int
    lfs: bool

    def described(self, path):
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Branches name commits, commits hold their files by path."""

    private: bool
    commits: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)

    def commit(self, branch, files, message):
        number = f"{len(self.commits)} {branch} {message}"
        oid = hashlib.sha1(number.encode() + repr(sorted(files.items())).encode()).hexdigest()
        self.commits[oid], self.messages[oid] = files, message
        self.branches[branch] = oid
        return oid

    def resolve(self, revision):
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


class Hub:
    """The state of the stand-in, and how it may be made to fail.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        storage: where LFS files lie; another host to a client, as with the real Hub.
        repositories: (type, id) -> Repository.
        requests: method and path of everything that was asked.
        hold_uploads: while it is set, uploads of LFS files wait; `upload_waits` tells when one does.
        break_commits: closes the connection in the middle of a commit.
    """

    def __init__(self, folder):
        self.blobs = Path(folder)
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.repositories, self.requests = {}, []
        self.hold_uploads, self.upload_waits = threading.Event(), threading.Event()
        self.break_commits = False
        self.lock = threading.Lock()
        self.endpoint = self.storage = ""

    def open_to_this_process(self, monkeypatch, cache):
        """Lets huggingface_hub in this process take the stand-in, and a cache of its own, for the Hub."""
        constants = huggingface_hub.constants
        url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which remembers where an earlier Hub was

    def store(self, content):
        (self.blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)

    def stored(self, content, lfs):
        self.store(content)
        sha256 = hashlib.sha256(content).hexdigest()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return StoredFile(sha256, git, len(content), lfs)

    def content(self, sha256):
        file = self.blobs / sha256
        if not file.is_file():
            raise Refused(404, "EntryNotFound", "no such object")
        return file.read_bytes()

    def files(self, repo_id, repo_type="model", revision="main"):
        """path -> content of a revision, for the tests to look at."""
        repository = self.repositories[repo_type, repo_id]
        return {
            path: self.content(one.sha256) for path, one in repository.commits[repository.resolve(revision)].items()
        }


@contextmanager
def hub_server(folder) -> Iterator[Hub]:
    """Runs a stand-in that keeps its files in a folder."""
    hub = Hub(folder)
    handler = type("HubHandler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint, hub.storage = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.hold_uploads.clear()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        address = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(address.query)
        self.hub.requests.append((self.command, unquote(self.path)))
        try:
            # a revision such as refs/pr/1 is one part, with its slashes quoted
            self._route([unquote(part) for part in address.path.strip("/").split("/")])
        except Refused as refused:
            content = json.dumps({"error": refused.message}).encode()
            told = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(content, refused.status, **{name: value for name, value in told.items() if value})

    def _route(self, parts):
        match parts:
            case ["api", "whoami-v2"]:
                self._check_token(required=True)
                self._json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})
            case ["api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                self._validate(json.loads(self.body)["content"])
            case ["api", kinds, owner, name, *rest] if kinds in ("models", "datasets"):
                self._of_repository(kinds[:-1], f"{owner}/{name}", rest)
            case [*prefix, owner, git, "info", "lfs", "objects", "batch"]:
                self._repository("dataset" if prefix else "model", f"{owner}/{git.removesuffix('.git')}", writes=True)
                self._lfs_batch(json.loads(self.body)["objects"])
            case ["lfs", sha256]:
                self._lfs_upload(sha256)
            case ["cdn", sha256]:
                self._file(self.hub.content(sha256), f'"{sha256}"')
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._resolve("dataset", f"{owner}/{name}", revision, "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._resolve("model", f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise Refused(404, None, f"the stand-in does not know {self.path}")

    def _of_repository(self, kind, repo_id, rest):
        match rest:
            case [] | ["revision", _]:
                self._info(kind, repo_id, rest[1] if rest else "main")
            case ["tree", revision, *within]:
                self._tree(kind, repo_id, revision, "/".join(within))
            case ["paths-info", revision]:
                self._paths_info(kind, repo_id, revision)
            case ["preupload", revision]:
                self._preupload(kind, repo_id, revision)
            case ["commit", revision]:
                self._commit(kind, repo_id, revision)
            case ["branch", branch]:
                self._branch(kind, repo_id, branch)
            case ["refs"]:
                branches = self._repository(kind, repo_id).branches.items()
                named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches]
                self._json({"branches": named, "tags": [], "converts": []})
            case _:
                raise Refused(404, None, f"the stand-in does not know {self.path}")

    def _check_token(self, required):
        """Whether the caller has the token."""
        given = self.headers.get("Authorization")
        if given is None:
            if required:
                raise Refused(401, None, "Invalid username or password.")
            return False
        if given != f"Bearer {TOKEN}":
            raise Refused(401, None, "Invalid credentials in Authorization header")
        return True

    def _repository(self, kind, repo_id, writes=False):
        known = self._check_token(required=writes)
        found = self.hub.repositories.get((kind, repo_id))
        if found is None or (found.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        if writes and not repo_id.startswith(f"{USER}/"):
            raise Refused(403, None, "You don't have the rights to write to this repository")
        return found

    def _create(self, wanted):
        self._check_token(required=True)
        owner = wanted.get("organization") or USER
        if owner != USER:
            raise Refused(403, None, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        kind, repo_id = wanted.get("type", "model"), f"{owner}/{wanted['name']}"
        address = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repositories:
                self._json({"url": address, "error": "You already created this repo"}, 409)
                return
            repository = Repository(private=wanted.get("visibility") == "private")
            first = self.hub.stored(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)
            repository.commit("main", {".gitattributes": first}, "initial commit")
            self.hub.repositories[kind, repo_id] = repository
        self._json({"url": address, "id": repo_id})

    def _validate(self, content):
        head = content.split("---\n")[1] if content.startswith("---\n") else "{}"
        try:
            metadata = yaml.safe_load(head)
        except yaml.YAMLError as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        wrong = [name for name in ("license", "pipeline_tag") if not isinstance(metadata.get(name, ""), str)]
        errors = [{"message": f'"{name}" must be a string'} for name in wrong]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _info(self, kind, repo_id, revision):
        repository = self._repository(kind, repo_id)
        oid = repository.resolve(revision)
        files = repository.commits[oid]
        # what the Hub reads out of the card
        head = self.hub.content(files["README.md"].sha256).decode() if "README.md" in files else ""
        card = yaml.safe_load(head.split("---\n")[1]) if head.startswith("---\n") else {}
        about = {"id": repo_id, "sha": oid, "private": repository.private, "gated": False, "cardData": card}
        about |= {"tags": card.get("tags") or [], "siblings": [{"rfilename": path} for path in sorted(files)]}
        about |= {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
        self._json(about)

    def _tree(self, kind, repo_id, revision, within):
        repository = self._repository(kind, repo_id)
        oid = repository.resolve(revision)
        files = repository.commits[oid]
        start = f"{within}/" if within else ""
        inside = {path: one for path, one in sorted(files.items()) if path.startswith(start)}
        if within and not inside:
            raise Refused(404, "EntryNotFound", f"{within} does not exist on {revision}")
        recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        entries, folders = [], set()
        for path, one in inside.items():
            parents = path.removeprefix(start).split("/")[:-1]
            for depth in range(len(parents) if recursive else min(1, len(parents))):
                folders.add(start + "/".join(parents[: depth + 1]))
            if recursive or not parents:
                entries.append(one.described(path))
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self._json(entries)

    def _paths_info(self, kind, repo_id, revision):
        repository = self._repository(kind, repo_id)
        files = repository.commits[repository.resolve(revision)]
        entries = []
        for path in parse_qs(self.body.decode()).get("paths", []):
            if path in files:
                entries.append(files[path].described(path))
            elif any(one.startswith(f"{path}/") for one in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._json(entries)

    def _preupload(self, kind, repo_id, revision):
        repository = self._repository(kind, repo_id, writes=True)
        there = repository.commits[repository.resolve(revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path, size = file["path"], file["size"]
            lfs = path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR
            old = there.get(path)
            oid = None if old is None else old.sha256 if old.lfs else old.oid
            mode = "lfs" if lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _lfs_batch(self, objects):
        answers = []
        for one in objects:
            answer = {"oid": one["oid"], "size": one["size"]}
            if not (self.hub.blobs / one["oid"]).is_file():
                answer["actions"] = {"upload": {"href": f"{self.hub.storage}/lfs/{one['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def _lfs_upload(self, sha256):
        if self.hub.hold_uploads.is_set():
            self.hub.upload_waits.set()
            while self.hub.hold_uploads.is_set():
                threading.Event().wait(0.05)
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refused(400, None, "the object is not what its hash says")
        self.hub.store(self.body)
        self._send(b"", 200)

    def _commit(self, kind, repo_id, branch):
        repository = self._repository(kind, repo_id, writes=True)
        if self.hub.break_commits:
            self.close_connection = True
            self.connection.close()
            return
        if branch not in repository.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        lines = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            files = dict(repository.commits[repository.branches[branch]])
            for line in lines[1:]:
                value = line["value"]
                match line["key"]:
                    case "file":
                        files[value["path"]] = self.hub.stored(base64.b64decode(value["content"]), lfs=False)
                    case "lfsFile":
                        files[value["path"]] = self.hub.stored(self.hub.content(value["oid"]), lfs=True)
                    case "deletedFile":
                        if files.pop(value["path"], None) is None:
                            raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
                    case other:
                        raise Refused(400, None, f"the stand-in does not know {other}")
            oid = repository.commit(branch, files, lines[0]["value"]["summary"])
        place = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{place}/commit/{oid}", "hookOutput": ""})

    def _branch(self, kind, repo_id, branch):
        repository = self._repository(kind, repo_id, writes=True)
        if branch in repository.branches:
            self._json({"error": "Reference already exists"}, 409)
            return
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.resolve(start)
        self._json({"success": True})

    def _resolve(self, kind, repo_id, revision, path):
        repository = self._repository(kind, repo_id)
        oid = repository.resolve(revision)
        commit = {"X-Repo-Commit": oid}
        file = repository.commits[oid].get(path)
        if file is None:
            message = json.dumps({"error": "Entry not found"}).encode()
            self._send(
                message, 404, **{"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, **commit
            )
        elif file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            self._send(b"", 302, Location=f"{self.hub.storage}/cdn/{file.sha256}", **linked, **commit)
        else:
            self._file(self.hub.content(file.sha256), f'"{file.oid}"', **commit)

    def _file(self, content, etag, **headers):
        """A file, or the part of it that is asked for."""
        headers |= {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(content, 200, **headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(content[start:end], 206, **headers)

    def _json(self, content, status=200):
        self._send(json.dumps(content).encode(), status, **{"Content-Type": "application/json"})

    def _send(self, content, status, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
