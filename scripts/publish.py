#!/usr/bin/env python
"""Publish a model, an adapter or a prepared set on the Hugging Face Hub, with a card of what was really run.

Log in once (hf auth login), then see what would go, the card at the end, and publish; new repositories are private:
    python scripts/publish.py runs/neurolm-b me/neurolm-workload --dry-run
    python scripts/publish.py runs/neurolm-b me/neurolm-workload

With the figures of its evaluation, which must be of these very weights, and a licence for them:
    python scripts/evaluate_tasks.py --model runs/neurolm-b --data prepared/workload --output-dir results
    python scripts/publish.py runs/neurolm-b me/neurolm-workload --results results --licence cc-by-4.0

An adapter, whose model is on the Hub already, for everybody:
    python scripts/publish.py runs/adapter me/neurolm-mine --base-model me/neurolm-b --public

A prepared set, whose card says what is known of the licence of its recordings:
    python scripts/publish.py prepared/workload me/workload

Sent are safetensors, configurations, vocabularies, the processor, the Python files of the model, and the card; never
checkpoints, optimiser states, pickles or logs. Paths of this machine are taken out of the configurations, and so are
the names of the training subjects, unless --subject-names keeps them. A README.md that you have edited goes as it is;
delete it and a new one is made. One that was edited on the Hub stays there; one of ours there that names a licence,
an evaluation or data sets is replaced by one that does too, or with --replace-card. A model goes in one commit, whose
hash, printed at the end, is what `revision=` pins: the same weights and the same code, whatever is uploaded later.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 stopped.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from neurolm_hf.command_line import options_parser
from neurolm_hf.model_card import CARD, CardOptions
from neurolm_hf.publishing import Parcel, is_prepared_set, pack, publish, push_prepared


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    public: bool = field(default=False, metadata={"help": "For everybody to see; without, the repository is private."})
    revision: str | None = field(
        default=None, metadata={"metavar": "BRANCH", "help": "Branch to commit to, made if it is not there; or main."}
    )
    results: str | None = field(
        default=None, metadata={"metavar": "FOLDER", "help": "What scripts/evaluate_tasks.py wrote about the model."}
    )
    licence: str | None = field(
        default=None, metadata={"help": "Of the weights: a name of the Hub such as cc-by-4.0, or words."}
    )
    base_model: str | None = field(
        default=None, metadata={"metavar": "ID", "help": "Of an adapter: the repository of the model it belongs to."}
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"metavar": "ID", "help": "Repositories of what the model was trained on."}
    )
    subject_names: bool = field(
        default=False, metadata={"help": "Leave the names of the training subjects in, by which others tell leakage."}
    )
    replace_card: bool = field(
        default=False,
        metadata={"help": "Do without the licence, evaluation or data sets that the card on the Hub names."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Only say what would go, and print the card."})

    @property
    def of_models(self) -> list[str]:
        """The options that were given and are for models alone."""
        names = ("results", "licence", "base_model", "datasets", "subject_names", "replace_card", "dry_run")
        return ["--" + name.replace("_", "-") for name in names if getattr(self, name)]


def main(arguments: list[str] | None = None) -> None:
    """Publishes, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    # what is no field of the dataclass comes back beside it
    parser.add_argument("folder", metavar="FOLDER", help="Of the model, the adapter or the prepared set.")
    parser.add_argument("repo_id", metavar="ID", help="The repository: you/name, made if it is not there.")
    options, place = parser.parse_args_into_dataclasses(arguments)
    target: dict[str, Any] = {"private": not options.public, "revision": options.revision}
    try:
        if is_prepared_set(place.folder):
            if options.of_models:
                parser.error(f"{place.folder} is a prepared set: {', '.join(options.of_models)} are for models")
            commit = push_prepared(place.folder, place.repo_id, **target)
        else:
            card = CardOptions(place.repo_id, options.results, options.licence, options.base_model, options.datasets)
            parcel = pack(place.folder, card, subject_names=options.subject_names)
            report(parcel)
            if options.dry_run:
                content = parcel.files[CARD]
                print(f"\n{content.decode() if isinstance(content, bytes) else content.read_text(encoding='utf-8')}")
                return
            commit = publish(parcel, place.repo_id, **target, replace_card=options.replace_card)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("Stopped. What was not committed is not to be seen on the Hub.", file=sys.stderr)
        sys.exit(130)
    print(f'address  {commit.commit_url}\npin it   revision="{commit.oid}"')


def report(parcel: Parcel) -> None:
    """Prints what goes and what does not."""
    print(f"goes     {', '.join(sorted(parcel.files))} ({parcel.size / 1e6:,.1f} MB)")
    if parcel.left_out:
        print(f"stays    {', '.join(parcel.left_out)}")
    if parcel.edited_card:
        print(f"note     {CARD} has been edited and goes as it is; delete it for a new one.")


if __name__ == "__main__":
    main()
