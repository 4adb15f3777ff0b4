"""Training: the log, stops and checkpoints; evaluation and predictions of a trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Natc

from natc.errors import ArgumentError, CheckpointError, DataError, TrainingError

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")


def run(content: dict[str, Any], **options: Any) -> Any:
    from natc.vision import recipe
    from natc.vision.train import train

    return train(recipe.from_builtins(content, "recipe"), **options)


def log(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of the log, without speeds."""
    lines = (Path(content["output"]) / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def test_log_and_files(content: dict[str, Any]) -> None:
    reported = []
    summary = run(content, on_progress=reported.append)
    rows = log(content)
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    # Three steps of warm-up, the cosine, and three steps at the least rate.
    assert rates[:3] == pytest.approx([1e-6, 3.34e-4, 6.67e-4]) and rates[6:] == [5e-6] * 3
    assert 6.67e-4 > rates[3] > rates[4] > rates[5] > 5e-6
    assert summary.steps == 9 and reported[-1].step == reported[-1].steps == 9
    assert summary.top1 == max(row["top1"] for row in rows if "top1" in row)
    files = {path.name for path in summary.folder.iterdir()}
    assert files >= {"checkpoint.pth", "model.pth", "log.jsonl", "recipe.yaml", "curves.png"}
    # All is done: nothing is computed again.
    assert run(content).continued_from == 9
    assert log(content) == rows


def test_a_stopped_training_continues_to_the_bit(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natc.vision import train

    run(content)
    expected = log(content)
    whole = torch.load(Path(content["output"]) / "checkpoint.pth")
    # Every step makes a checkpoint, except the last ones of epochs.
    monkeypatch.setattr(train, "_STEPS_A_FETCH", 1)
    content["training"]["checkpoint_minutes"] = 0
    content["output"] = str(tmp_path / "stopped")

    for step in (1, 5, 6, 8):

        def stop(progress: Any, at: int = step) -> None:
            if progress.step >= at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(content, on_progress=stop)
        with open(Path(content["output"]) / "log.jsonl", "a") as file:
            file.write('{"step": 5, "lo')
    notes: list[str] = []
    content["data"]["workers"] = 1
    summary = run(content, note=notes.append)
    # Step 8 was computed and its checkpoint not written.
    assert summary.continued_from == 7 and "step 7" in notes[0]
    assert log(content) == expected
    stopped = torch.load(Path(content["output"]) / "checkpoint.pth")
    for part in ("state_dict", "state_dict_ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(stopped[part][name], tensor), name


def test_checkpointed_gradients_and_accumulation_change_nothing(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["augmentation"] = {"mixup": 0, "cutmix": 0}
    content["model"]["options"]["drop_path_rate"] = 0
    losses = []
    for number, settings in enumerate(
        ({}, {"gradient_checkpointing": True}, {"batch_size": 8, "accumulation": 1})
    ):
        content["output"] = str(tmp_path / f"run{number}")
        content["training"] |= settings
        run(content)
        losses.append([row["loss"] for row in log(content)])
    assert losses[1] == losses[0]
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_cannot_be_used(content: dict[str, Any]) -> None:
    run(content)
    path = Path(content["output"]) / "checkpoint.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth cannot be read.*remove it"):
        run(content)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of natc train"):
        run(content)
    path.write_bytes(whole)
    content["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(ArgumentError, match="optimizer.learning_rate: 0.001, now 0.5"):
        run(content)
    assert path.read_bytes() == whole


def test_trainings_that_cannot_start(content: dict[str, Any]) -> None:
    def changed(section: str, **entries: Any) -> dict[str, Any]:
        return {**content, section: {**content.get(section, {}), **entries}}

    with pytest.raises(DataError, match="26 images, and a step takes 64"):
        run(changed("training", batch_size=32))
    with pytest.raises(ArgumentError, match="nat_huge"):
        run(changed("model", name="nat_huge"))
    with pytest.raises(ArgumentError, match="kernel"):
        run(changed("model", options={"kernel": 3}))
    with pytest.raises(ArgumentError, match="adamx"):
        run(changed("optimizer", name="adamx"))


def test_a_loss_that_is_not_finite_stops(content: dict[str, Any]) -> None:
    content["optimizer"] |= {"learning_rate": 1e30, "warmup_epochs": 0, "clip_norm": None}
    with pytest.raises(TrainingError, match="learning_rate"):
        run(content)


def test_the_command_line(
    content: dict[str, Any], folder: Path, natc: Natc, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content))
    out = tmp_path / "elsewhere"
    document = natc.json("train", str(recipe), "--output", str(out))
    assert document["folder"] == str(out) and document["steps"] == 9
    measured = natc.json("eval", str(out))
    assert measured["top1"] == document["top1"] and measured["images"] == 6
    assert sum(map(sum, measured["confusion"])) == 6 and measured["classes"] == ["day", "night"]
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert natc.json("eval", str(out / "model.pth"), str(folder / "train"))["images"] == 26
    day, night = (str(folder / "val" / name / "1.png") for name in ("day", "night"))
    picture = tmp_path / "classes.png"
    predictions = natc.json("predict", day, night, "--model", str(out), "-o", str(picture))
    assert [prediction["image"] for prediction in predictions] == [day, night]
    for prediction in predictions:
        assert sorted(prediction["classes"]) == ["day", "night"]
        assert sum(prediction["probabilities"]) == pytest.approx(1)
        assert prediction["probabilities"] == sorted(prediction["probabilities"], reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = natc("predict", day, "--model", str(out)).out
    assert "day" in table and "%" in table
    assert "absent.png" in natc.refused("predict", "absent.png", "--model", str(out), code=1)
    assert "model.pth" in natc.refused("eval", str(tmp_path), code=1)
    assert "absent" in natc.refused("eval", str(out), str(tmp_path / "absent"), code=1)
    assert "mine.yaml" in natc.refused("train", str(tmp_path / "mine.yaml"))


def test_weights_of_another_network(
    content: dict[str, Any], folder: Path, natc: Natc, tmp_path: Path
) -> None:
    from natc import models

    weights = tmp_path / "weights.pth"
    models.save(models.NAT(16, (1,), (1,), mlp_ratio=2, num_classes=2), weights)
    content["model"]["weights"] = str(weights)
    with pytest.raises(CheckpointError, match=r"weights\.pth does not fit.*mismatched"):
        run(content)
    # A published network has more classes than these images.
    with torch.device("meta"):
        network = models.nat_mini()
    weights = {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}
    torch.save(weights, tmp_path / "nat_mini.pth")
    message = natc.refused("eval", str(tmp_path / "nat_mini.pth"), str(folder / "val"), code=1)
    assert "2 classes, and the network 1000" in message
