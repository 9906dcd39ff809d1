"""The commands: each parses, calls one function, and prints."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlreason import __version__
from rlreason.errors import Failure, RecipeError, StorageError

if TYPE_CHECKING:
    from rlreason.config import Config

EPILOG = """exit codes: 0 done, 1 a bug or a broken learner, 2 the recipe, 3 resources, 4 rollouts, 5 storage, 6 a regression,
75 interrupted and committed (the same command goes on), 130 interrupted at once"""


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know ×, and a model may write anything
    sys.path.insert(0, str(Path.cwd()))  # a reward or generator of one's own is a file here, or beside the recipe
    top = parser()
    parsed, rest = top.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest) or (rest and "overrides" not in parsed):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse does not look for key=value behind an option
        parsed.overrides += rest
    if "recipe" in parsed:
        _beside(parsed.recipe)
    try:
        return int(parsed.command(parsed) or 0)
    except Failure as failure:
        print(f"rlreason: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"rlreason: {error}", file=sys.stderr)
        return StorageError.code
    except KeyboardInterrupt:
        print("rlreason: interrupted; what was committed is kept, and the same command goes on from it", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="rlreason", description="Teach a language model to reason.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(command=function)
        return sub

    def takes_recipe(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, such as recipes/quickstart.yaml")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="options that win over the recipe's")

    sub = command("train", train, "run a recipe, going on where it was cut off")
    takes_recipe(sub)
    sub.add_argument("--fresh", action="store_true", help="begin anew; an old run is moved aside, not deleted")
    sub.add_argument("--redo", action="store_true", help="make stages anew whose recipe or inputs have changed")
    sub.add_argument("--force", action="store_true", help="go on from the newest checkpoint though the recipe has changed")
    takes_recipe(command("config", show, "print a recipe resolved and checked"))
    sub = command("eval", evaluate, "score a model on a recipe's held-out tasks")
    sub.add_argument("model", metavar="MODEL", help="a Hugging Face name or directory")
    takes_recipe(sub)
    sub = command("status", status, "show how far a run is: its stages, their times and scores")
    sub.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    sub = command("report", report, "write report.html of a run")
    sub.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    return top


def train(parsed: argparse.Namespace) -> None:
    from rlreason import signals

    with signals.ending():
        _train(parsed)


def _train(parsed: argparse.Namespace) -> None:
    from rlreason import pipeline, stages

    many = _pipeline(parsed)
    out = many.out if many else Path((config := _config(parsed)).out)
    if parsed.redo and not many:
        raise RecipeError(["--redo: this recipe has no stages; --fresh begins it anew"])
    if parsed.fresh and parsed.force:
        raise RecipeError(["--fresh begins anew, and --force goes on with what is there: say one of them"])
    if parsed.fresh:
        stages.aside(out)
    if many:
        for name, stage in many.stages.items():
            if not stages.done(Path(stage.out)):
                _print_table(name, stage)
        summary = pipeline.run(many, parsed.redo, parsed.force)
    else:
        _print_table(parsed.recipe.stem, config)
        summary = stages.run(config, parsed.recipe.stem, force=parsed.force)
    for when in ("before", "after"):
        if score := summary[f"accuracy_{when}"]:
            print(f"accuracy {when}: {score['mean']:.3f}  95 % interval [{score['low']:.3f}, {score['high']:.3f}]"
                  f"  (sampled, {score['n']} held-out tasks)")  # fmt: skip
    print(f"model: {summary['model']}")
    from rlreason import report as reports

    print(f"report: {reports.write(out)}")


def _beside(recipe: Path) -> None:
    """Let functions of one's own that lie beside the recipe be found, here and in every process of the run."""
    folder = str(recipe.resolve().parent)
    sys.path.insert(1, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))


def show(parsed: argparse.Namespace) -> None:
    from rlreason.algorithms import PRESETS
    from rlreason.config import arithmetic, to_yaml
    from rlreason.recipe import leaves

    many = _pipeline(parsed)
    for name, config in (many.stages if many else {parsed.recipe.stem: _config(parsed)}).items():
        lines = [f"# {name}"] if many else []
        if preset := PRESETS.get(config.algorithm.preset):
            stands_for = (f"{key}: {json.dumps(value)}" for key, value in leaves(preset.settings))
            lines += [f"# preset {config.algorithm.preset}: {preset.paper}", *(f"#   {line}" for line in stands_for)]
        lines += [f"# {key}: {value}" for key, value in arithmetic(config)]
        print(*lines, to_yaml(config), sep="\n")


def evaluate(parsed: argparse.Namespace) -> None:
    import asyncio

    from rlreason import stages

    many = _pipeline(parsed)
    config = list(many.stages.values())[-1] if many else _config(parsed, f"model={parsed.model}")
    config.model = parsed.model
    score = asyncio.run(stages.score_model(config, "eval"))
    print(f"{config.metric} of {parsed.model}: {score}")


def status(parsed: argparse.Namespace) -> None:
    from rlreason import status as statuses

    statuses.show(parsed.run)


def report(parsed: argparse.Namespace) -> None:
    from rlreason import report as reports

    try:
        print(reports.write(parsed.run))
    except (OSError, ValueError) as error:
        raise StorageError(f"no report of {parsed.run}: {error}") from error


def _pipeline(parsed: argparse.Namespace) -> Any:
    from rlreason import pipeline
    from rlreason.recipe import document

    return pipeline.load(parsed.recipe, parsed.overrides) if "stages" in document(parsed.recipe)[0] else None


def _config(parsed: argparse.Namespace, *more: str) -> Config:
    from rlreason.recipe import load

    return load(parsed.recipe, [*parsed.overrides, *more])


def _print_table(name: str, config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlreason.config import arithmetic

    table = Table("what", "how many", title=f"{name}: {config.out}", title_justify="left")
    for row in arithmetic(config):
        table.add_row(*row)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
