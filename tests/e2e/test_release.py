"""An exported model, loaded as others will load it."""

import pytest
from real import rlreason

pytestmark = pytest.mark.e2e
EXAM = ("recipes/debug.yaml", "eval.samples=2", "rollout.max_tokens=8")


def test_vllm_answers_with_an_exported_model_as_with_its_source(models, digits, tmp_path):
    source, out = models("qwen2-tied"), tmp_path / "run"
    (tmp_path / "export.yaml").write_text(f"kind: export\nmodel: {source}\nout: {out}\n")
    run = rlreason("train", tmp_path / "export.yaml", out=out)
    assert run.code == 0, run.text
    assert "reload to the same logits" in run.text
    written = (out / "model").stat().st_ino
    again = rlreason("train", tmp_path / "export.yaml", out=out)
    assert again.code == 0, again.text
    assert (out / "model").stat().st_ino == written, "what is done is not done again"
    answers = []
    for name, model in (("before", source), ("after", out / "model")):
        exam = rlreason("eval", model, *EXAM, f"tasks.path={digits}", f"out={tmp_path / name}", out=tmp_path / name)
        assert exam.code == 0, exam.text
        answers.append((tmp_path / name / "eval.jsonl").read_text())
    assert len(answers[0].splitlines()) == 80
    assert answers[0] == answers[1]
