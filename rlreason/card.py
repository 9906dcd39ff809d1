"""A model's card: what made it, how it scored and how to check both, told from the manifests alone. Knows no engine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from rlreason import checkpoint, manifest
from rlreason.lineage import Stage, ancestors, code, data, data_names, lineage, link, of_hub, place, settings, shown

HASH = 'from pathlib import Path; from rlreason.manifest import weights_of; print(weights_of(Path(".")))'


def card(model: str, folder: Path, about: dict[str, Any], scores: Path | None) -> str:
    """README.md of the model in `folder`, which was exported from `model`, the recipe's name for it.

    `about` is what was seen of it: `model_type`, `parameters`, `dtype`. `scores`: scores.json of an eval stage. A function
    of these, the manifests and summaries; it holds no time, no absolute path, no URL of a recipe.
    """
    stages = lineage(model)
    chain = [stage for stage in ancestors(stages) if stage.trains]  # whose weights became the model's
    digest = manifest.weights_of(folder)
    scored = checkpoint.read_json(scores) if scores else None
    exam = next(reversed(lineage(str(scores))), None) if scores else None
    parts = [
        _front(model, stages, chain, scored, exam),
        f"# {_name(model, stages)}\n\n{_what(model, about, stages, chain)}",
        _training(stages, digest) if stages else "",
        _scores(scored, exam, digest),
        _use(folder, about, chain, exam),
        _verify(folder, digest),
        _limits(stages, chain, scored, exam),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- front matter ----


def _front(model: str, stages: list[Stage], chain: list[Stage], scored: Any, exam: Stage | None) -> str:
    """Metadata as the Hub reads it: github.com/huggingface/hub-docs, modelcard.md."""
    said: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base := _base(model, stages):
        said["base_model"] = base
    if sets := sorted({path for stage in stages if stage.made["kind"] != "export" for path in _hub_data(stage)}):
        said["datasets"] = sets
    tags = ["rlreason"]
    if any(stage.said("algorithm.answers") == "policy" for stage in chain):
        tags += ["reinforcement-learning", "reasoning"]
    if any(stage.said("algorithm.answers") == "recorded" for stage in chain):
        tags.append("sft")
    if any(stage.under("sample.teacher.") or stage.said("algorithm.preset") == "distill" for stage in stages):
        tags.append("distillation")
    said["tags"] = tags
    if results := _results(scored, exam) if scored else []:
        said["model-index"] = [{"name": _name(model, stages), "results": results}]
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---"


def _results(scored: Any, exam: Stage | None) -> list[dict[str, Any]]:
    """Every score of the whole and of each domain, in the Hub's form."""
    asked = data_names(exam) if exam else ""
    of_metric = f" ({scored['metric']})"  # the others are rewards, by their own names
    of = [("", scored["scores"]), *scored["domains"].items()]
    return [
        {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"name": asked or "not recorded", "type": asked or "unknown"} | ({"config": domain} if domain else {}),
            "metrics": [
                {"type": name, "name": name + of_metric * ("@" in name), "value": round(s["mean"], 6)}
                for name, s in found.items()
            ],
        }
        for domain, found in of
        if found
    ]


def _base(model: str, stages: list[Stage]) -> str:
    """The hub's name of the model that it all began with; "" where that is none of the hub's."""
    first = next(iter(ancestors(stages)), None)
    entry = first.made["inputs"].get("model", {"path": ""}) if first else {"path": model}
    return str(entry["path"]) if of_hub(entry) else ""


def _hub_data(stage: Stage) -> list[str]:
    keys = (key for key in stage.made["inputs"] if key == "tasks.path" or key.startswith("tasks.mixture."))
    return [entry["path"] for key in keys if of_hub(entry := stage.made["inputs"][key])]


def _name(model: str, stages: list[Stage]) -> str:
    """After the run that it comes from, else after its directory."""
    if not stages:
        return Path(os.path.abspath(model)).name
    last = stages[-1].folder
    return last.parent.name if (last.parent / "pipeline.json").exists() else last.name


# ---- text ----


def _what(model: str, about: dict[str, Any], stages: list[Stage], chain: list[Stage]) -> str:
    size = f"{about['model_type']}, {about['parameters']:,} parameters, {about['dtype']}"
    kind = f"A causal language model ({size})"
    if not stages:
        given = link(model) if of_hub({"path": model}) else f"a directory named {code(Path(model).name)}"
        return (f"{kind}, exported by rlreason from {given}. **No manifest speaks of it**: what it was trained on is not "
                "recorded here.")  # fmt: skip
    taken = f"It is {code(_within(model, stages[-1]))}."
    if not chain:
        return f"{kind}, exported by rlreason from {place(stages[-1], 'model', stages)}, which was not trained here. {taken}"
    methods = " -> ".join(_method(stage) for stage in chain)
    versions: dict[str, list[str]] = {}
    for version, sha in dict.fromkeys((stage.made["code"]["version"], stage.made["code"]["sha256"][:12]) for stage in stages):
        versions.setdefault(version, []).append(sha)
    ours = " and ".join(f"{version} (sources {', '.join(hashes)})" for version, hashes in versions.items())
    return f"{kind}, trained by rlreason {ours}: from {place(chain[0], 'model', stages)}, by {methods}. {taken}"


def _within(model: str, stage: Stage) -> str:
    """The path of what a stage made, from the run's folder on; and what a link there leads to."""
    name = Path(os.path.abspath(model)).name
    inside = "weights/" * stage.trains + name
    leads = Path(os.path.realpath(model)).name
    return f"{stage.label}/{inside}" + (f" -> {leads}" if leads != name else "")


def _method(stage: Stage) -> str:
    if stage.made["kind"] == "sample":
        kept = f", {stage.summary['samples']:,} kept" if "samples" in stage.summary else ""
        return f"answers{' of a teacher' if stage.under('sample.teacher.') else ''}{kept}"
    if not stage.trains:
        return str(stage.made["kind"])
    if stage.said("algorithm.answers") == "recorded":
        return f"imitation ({stage.said('algorithm.loss')})"
    preset = stage.said("algorithm.preset")
    how = f"{stage.said('algorithm.advantage')}, {stage.said('algorithm.loss')}"
    return f"reinforcement ({f'{preset}: ' if preset else ''}{how})"


def _training(stages: list[Stage], digest: str | None) -> str:
    rows: list[tuple[str, ...]] = [("stage", "what", "began with", "data", "steps", "tokens", "score, before -> after")]
    for stage in stages:
        if stage.made["kind"] == "export":
            continue
        teacher = stage.said("sample.teacher.model")
        began = f"{code(str(teacher))} behind an endpoint" if teacher else place(stage, "model", stages)
        numbers = [f"{stage.summary[key]:,}" if stage.summary.get(key) is not None else "–" for key in ("steps", "tokens")]
        rows.append((code(stage.label), _method(stage), began, data(stage, stages), *numbers, _before_after(stage)))
    notes = []
    for stage in stages:
        if stage.made["state"] != "done":
            notes.append(f"- {code(stage.label)} had not ended when the model was taken from it ({stage.made['state']}).")
        for key in stage.renewed:
            notes.append(
                f"- What {code(stage.label)} took as {code(key)} has been made anew since, so this may not be how it was."
            )
        for lost in stage.summary.get("regressions") or []:
            notes.append(f"- {code(stage.label)} made it worse: {_line(shown(lost))}")
    parts = ["## How it was trained", _table(rows), "\n".join(notes), *(_details(stage, stages, digest) for stage in stages)]
    return "\n\n".join(part for part in parts if part)


def _before_after(stage: Stage) -> str:
    told = [_score(s) for when in ("before", "after") if (s := stage.summary.get(f"accuracy_{when}"))]
    return f"{stage.metric}: {' -> '.join(told)}" if told else "–"


def _details(stage: Stage, stages: list[Stage], digest: str | None) -> str:
    made = stage.made
    lines = [line for when in ("begin", "end") if (line := _weights(stage, when, stages, digest))]
    for key, entry in made["inputs"].items():
        if key not in ("model", "export.scores") and "sha256" in entry:
            whence = "" if key.startswith("code of ") else f"{place(stage, key, stages)}, "
            lines.append(f"- {_line(key)}: {whence}sha256 `{entry['sha256']}`")
    lines.append(f"- seed {made['seed']}; rlreason {made['code']['version']}, sources `{made['code']['sha256']}`")
    options = settings(stage)
    listed = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in options.items())
    if options:
        lines += ["- options, where they are not the default:", "", _fence(listed, "yaml")]
    return f"### {stage.label}\n\n" + "\n".join(lines)


def _weights(stage: Stage, when: str, stages: list[Stage], digest: str | None) -> str:
    """The hash of the weights that a stage began or ended with, and whose else they are."""
    sha = stage.made.get("weights", {}).get(when)
    if not sha:
        return ""
    same = [
        f"those that {code(other.label)} {verb} with"
        for other in stages
        for moment, verb in (("begin", "began"), ("end", "ended"))
        if other.trains and (other, moment) != (stage, when) and other.made.get("weights", {}).get(moment) == sha
    ]
    same = same[:2] + ["**this model's**"] * (sha == digest)
    verb = ("Began with" if when == "begin" else "Ended with") if stage.trains else "Answered with"
    return f"- {verb} weights {code(shown(sha))}{': ' if same else ''}{' and '.join(same)}"


def _scores(scored: Any, exam: Stage | None, digest: str | None) -> str:
    if not scored:
        return ""
    names = list(scored["scores"])
    of = [("all", scored["scores"]), *scored["domains"].items()]
    rows = [("tasks", "n", *names)]
    for domain, found in of:
        n = str(next(iter(found.values()))["n"]) if found else "–"
        rows.append((_line(domain), n, *(_score(found[name]) if name in found else "–" for name in names)))
    told = f"By the reward `{scored['metric']}`; intervals are 95 %, bootstrapped over tasks, and n is their number."
    if exam:
        told += (f" Tasks: {code(data_names(exam))}; {exam.said('eval.samples')} answers each, sampled at temperature "
                 f"{exam.said('rollout.temperature'):g}, of {exam.said('rollout.max_tokens'):,} tokens at most.")  # fmt: skip
    if scored.get("unjudged"):
        told += f" {scored['unjudged']} tasks could not be judged, and do not count."
    told += " What was scored has the hash of these weights." if scored["weights"] and scored["weights"] == digest else ""
    return f"## How it scored\n\n{told}\n\n{_table(rows)}"


def _use(folder: Path, about: dict[str, Any], chain: list[Stage], exam: Stage | None) -> str:
    chat = any(folder.glob("chat_template*"))
    last, asked = (chain[-1] if chain else None), exam or (chain[-1] if chain else None)
    notes = []
    if last and (template := last.said("tasks.template")):
        notes.append(f"Plain-text prompts were put into this template:\n\n{_fence(shown(template))}")
    if last and (system := last.said("tasks.system")):
        notes.append(f"Every prompt had this system message:\n\n{_fence(shown(system))}")
    said = asked.under("rollout.") if asked else {"temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
    sampling = f"temperature={said['temperature']}, top_p={said['top_p']}"
    limits = f"max_tokens={said['max_tokens']}" + (f", stop={shown(said['stop'])!r}" if said.get("stop") else "")
    given = 'messages = [{"role": "user", "content": "…"}]' if chat else 'prompt = "…"'
    text = "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)" if chat else "prompt"
    custom = "auto_map" in checkpoint.read_json(folder / "config.json")
    if custom:
        notes.append("It comes with Python files of its own, which `trust_remote_code=True` runs: read them first.")
    trust = ", trust_remote_code=True" * custom
    transformers = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this directory, or its name on a hub
tokenizer = AutoTokenizer.from_pretrained(path{trust})
model = AutoModelForCausalLM.from_pretrained(path, dtype="{about["dtype"]}"{trust})
{given}
inputs = tokenizer({text}, add_special_tokens={not chat}, return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens={said["max_tokens"]}, do_sample=True, {sampling}, top_k=0)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
    vllm = f"""from vllm import LLM, SamplingParams

if __name__ == "__main__":  # vLLM starts processes that may read this file again
    llm = LLM(model=".", dtype="{about["dtype"]}"{trust})
    {given}
    outputs = llm.{"chat(messages" if chat else "generate(prompt"}, SamplingParams({sampling}, {limits}))
    print(outputs[0].outputs[0].text)"""
    return "\n\n".join(["## How to use it", *notes, _fence(transformers, "python"), _fence(vllm, "python")])


def _verify(folder: Path, digest: str | None) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    listed = "\n".join(f"{checkpoint.checksum(path)}  {path.relative_to(folder)}" for path in files)
    told = [
        "## How to verify it",
        "Save these lines as `SHA256SUMS`, and `sha256sum -c SHA256SUMS` compares every file with them:",
        _fence(listed),
    ]
    if digest:
        told.append(f"The hash of the weights, however they are cut into files, is `{digest}`, and this prints it:")
        told.append(_fence(f"python -c '{HASH}'", "sh"))
    told.append("When it was exported it was loaded again, and gave the same logits, bit for bit, and the same tokens.")
    return "\n\n".join(told)


def _limits(stages: list[Stage], chain: list[Stage], scored: Any, exam: Stage | None) -> str:
    """What the files let one say, and no more."""
    if scored:
        of = code(data_names(exam)) if exam else "the tasks above"
        lines = [f"It was scored on {of} alone. How it does on anything else was not measured for this card, nor whether it is "
                 "safe, fair or truthful there."]  # fmt: skip
    else:
        but = ", but for the table's last column" if stages else ""
        lines = [f"No scores were given for this card: nothing here says how good, safe, fair or truthful it is{but}."]
    for stage in chain[-1:]:
        prompt, answer = stage.said("tasks.max_prompt"), stage.said("rollout.max_tokens")
        lines.append(
            f"Its last training, {code(stage.label)}, had prompts of at most {prompt:,} tokens, and answers of {answer:,}."
        )
    if unsigned := sorted({entry["path"] for stage in stages for entry in stage.made["inputs"].values() if of_hub(entry)}):
        lines.append(f"Taken from a hub by name, of no recorded revision: {', '.join(map(code, unsigned))}.")
    lines.append("The terms of the model that it began with and of the data are not recorded; they may bind whoever uses it.")
    return "## What is not known of it\n\n" + "\n".join(f"- {line}" for line in lines)


# ---- Markdown ----


def _score(score: dict[str, float]) -> str:
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(_line(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _line(text: str) -> str:
    """Text that stays in its cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _fence(text: str, language: str = "") -> str:
    """A block of code, whatever is in it."""
    marks = max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1
    return f"{'`' * marks}{language}\n{text}\n{'`' * marks}"
