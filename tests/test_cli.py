"""The command line as scripts use it: JSON lines, exit codes, signals, kills."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from patchdrive.pipeline.cli import main


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """A tiled TIFF slide, 0.5 µm per pixel, brown in the middle of white."""
    path = tmp_path_factory.mktemp("slide") / "my slide [1].tif"
    pixels = np.full((2560, 2560, 3), 244, np.uint8)
    pixels[512:2048, 512:2048] = np.random.default_rng(0).integers(60, 180, (1536, 1536, 3))
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    return path


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_run_prints_one_json_line_per_image_and_nothing_else(slide, tmp_path, capsys):
    assert main(["run", str(slide), "-o", str(tmp_path), "--json"]) == 0
    (report,) = lines(capsys)
    assert {
        "source", "store", "status", "planned", "done", "skipped", "failed", "coverage", "seconds",
        "bytes_decoded", "bytes_needed", "peak_host_bytes", "peak_device_bytes",
    } <= report.keys()  # fmt: skip
    assert {"total", "read", "infer", "write"} <= report["seconds"].keys()
    assert report["status"] == "done"
    assert report["planned"] == report["done"] > 20
    assert Path(report["store"]).name.startswith("my slide [1]-")
    assert main(["run", str(slide), "-o", str(tmp_path), "--json"]) == 0
    assert lines(capsys) == [report]


def test_a_single_image_that_is_refused_has_its_json_line_too(slide, tmp_path, capsys):
    assert main(["run", str(slide), "-o", str(tmp_path / "out"), "--mpp", "0.01", "--json"]) == 2
    said = capsys.readouterr()
    (report,) = [json.loads(line) for line in said.out.splitlines()]
    assert (report["status"], report["store"]) == ("failed", "")
    assert list(report["reasons"]) == [said.err.strip().removeprefix("patchdrive: ")]


def test_info_prints_the_kept_keys(slide, capsys):
    assert main(["info", str(slide), "--json"]) == 0
    (facts,) = lines(capsys)
    assert {"source", "reader", "dtype", "channels", "levels", "mpp", "crs", "transform", "nodata", "codec"} <= facts.keys()
    assert facts["mpp"] == [0.5, 0.5]
    assert facts["levels"][0] == {
        "height": 2560, "width": 2560, "downsample_y": 1.0, "downsample_x": 1.0, "tile_height": 256, "tile_width": 256,
    }  # fmt: skip
    assert main(["info", str(slide)]) == 0
    assert "0.5 x 0.5 µm" in capsys.readouterr().out


def test_plan_counts_what_run_reads_and_draws_it(slide, tmp_path, capsys):
    assert main(["plan", str(slide), "-o", str(tmp_path), "--json"]) == 0
    (facts,) = lines(capsys)
    assert main(["run", str(slide), "-o", str(tmp_path), "--json"]) == 0
    (report,) = lines(capsys)
    assert (facts["patches"], facts["bytes_needed"], facts["coverage"]) == (report["planned"], report["bytes_needed"], report["coverage"])
    assert Path(facts["picture"]).stat().st_size > 500


def test_report_prints_its_page(slide, tmp_path, capsys):
    main(["run", str(slide), "-o", str(tmp_path), "--json"])
    (report,) = lines(capsys)
    assert main(["report", report["store"]]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--mpp", "0.25"], 2, "would invent detail"),
        (["--gsd", "10"], 2, "--mpp"),
        (["--memory", "1MiB"], 2, "give --memory"),
        (["--memory", "lots"], 2, "not a size"),
        (["--model", "descripter"], 2, "descriptor"),
        (["--saliency", "tisue"], 2, "tissue"),
        (["--select", "topk"], 2, "max_patches"),
        (["--device", "cuda:7"], 2, "CUDA"),
        (["--overlap", "300"], 2, "overlap"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_written(slide, tmp_path, capsys, arguments, code, words):
    assert main(["run", str(slide), "-o", str(tmp_path / "out"), *arguments]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert not list((tmp_path / "out").glob("*/plans/*"))
    assert main(["run", str(slide), "-o", str(tmp_path / "out"), "--json"]) == 0  # and nothing stands in the way of the right words


def test_an_image_that_cannot_be_opened_fails_and_the_next_is_done(slide, tmp_path, capsys):
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0garbage")
    assert main(["run", str(bad), str(slide), "-o", str(tmp_path / "out"), "--json"]) == 3
    first, second = lines(capsys)
    assert (first["status"], second["status"]) == ("failed", "done")
    assert first["source"] == str(bad)
    assert first["reasons"]


def test_an_image_the_model_does_not_eat_fails_and_the_next_is_done(slide, tmp_path, capsys):
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, np.zeros((300, 300), np.uint8), tile=(256, 256))
    (tmp_path / "rgb_model.py").write_text(SLOW_MODEL.replace("time.sleep(0.04)", "pass"))
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["run", str(grey), str(slide), "-o", str(tmp_path / "out"), "--model", "rgb_model:Slow", "--json"]) == 2
    finally:
        sys.path.remove(str(tmp_path))
    first, second = lines(capsys)
    assert (first["status"], second["status"]) == ("failed", "done")


def test_a_slide_of_unknown_pixel_size_is_read_as_it_is_and_that_is_said(tmp_path, capsys):
    path = tmp_path / "unknown.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(60, 180, (600, 600, 3), np.uint8), tile=(256, 256), photometric="rgb")
    assert main(["run", str(path), "-o", str(tmp_path), "--saliency", "valid"]) == 0
    assert "--mpp-override" in capsys.readouterr().err
    assert main(["run", str(path), "-o", str(tmp_path / "told"), "--saliency", "valid", "--mpp-override", "0.5"]) == 0
    assert "--mpp-override" not in capsys.readouterr().err


def test_changed_settings_exit_2_and_say_which(slide, tmp_path, capsys):
    assert main(["run", str(slide), "-o", str(tmp_path)]) == 0
    assert main(["run", str(slide), "-o", str(tmp_path), "--patch-size", "128"]) == 2
    assert "settings.patch_size" in capsys.readouterr().err


SLOW_MODEL = '''
import os
import time
from pathlib import Path
from patchdrive.models import ModelSpec, OutputSpec

HERE = Path(__file__).parent

class Slow:
    """Means; once a block is committed it waits for as long as the file ``hold`` is there, so that a signal arrives in the middle."""
    spec = ModelSpec(name="slow", channels=3, size=24, outputs=(OutputSpec(name="m", kind="vector", channels=("r", "g", "b")),))
    digest = "slow-1"
    def __call__(self, pixels):
        while (HERE / "hold").exists() and any(HERE.glob("*/*.patchdrive/commits/0/*.json")):
            (HERE / f"held-{os.getpid()}").touch()
            time.sleep(0.01)
        return {"m": pixels.mean(dim=(2, 3))}
    def to(self, device):
        return self
'''


@pytest.fixture
def command(slide, tmp_path):
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    started: list[subprocess.Popen[str]] = []

    def start(out: Path) -> subprocess.Popen[str]:
        arguments = [
            sys.executable,
            "-m",
            "patchdrive.pipeline.cli",
            "run",
            str(slide),
            "-o",
            str(out),
            "--model",
            "slow_model:Slow",
            "--json",
        ]
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # its pipes are closed, and it is waited for
            process.kill()


def wait_until_held(process: subprocess.Popen[str], folder: Path) -> None:
    for _ in range(1200):
        if (folder / f"held-{process.pid}").exists():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    pytest.fail("no block was committed in 60 s")


def terminate(process: subprocess.Popen[str], hold: Path) -> None:
    """SIGTERM, and when it was heard, the model goes on."""
    process.send_signal(signal.SIGTERM)
    for line in process.stderr or ():
        if "finishing the block in hand" in line:
            break
    hold.unlink()


def test_sigkill_and_sigterm_cost_at_most_the_block_in_hand(command, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    killed = command(tmp_path / "cut")
    wait_until_held(killed, tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert not list((tmp_path / "cut").glob("*.done.json"))

    asked = command(tmp_path / "cut")
    wait_until_held(asked, tmp_path)
    terminate(asked, hold)
    said, _ = asked.communicate(timeout=60)
    assert asked.returncode == 75
    partial = json.loads(said)
    assert partial["status"] == "partial"

    rest = command(tmp_path / "cut")
    said, _ = rest.communicate(timeout=120)
    assert rest.returncode == 0
    whole = command(tmp_path / "whole")
    report = json.loads(whole.communicate(timeout=120)[0])
    assert json.loads(said)["done"] == report["planned"]
    assert 0 < partial["done"] < report["planned"]
    name = Path(report["store"]).name
    assert tree(tmp_path / "cut" / name) == tree(tmp_path / "whole" / name)


@pytest.mark.slow
def test_a_store_in_use_says_try_again(command, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    first = command(tmp_path / "out")
    wait_until_held(first, tmp_path)
    first.send_signal(signal.SIGSTOP)  # it stands still, and lives
    second = command(tmp_path / "out")
    _, said = second.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 75
    assert "in use" in said
    terminate(first, hold)
    assert first.wait(timeout=120) == 75  # it went on, unharmed, and ends its block in hand


def test_the_same_image_twice_is_run_once(slide, tmp_path, capsys):
    assert main(["run", str(slide), str(slide), "-o", str(tmp_path), "--json"]) == 0
    first, second = lines(capsys)
    assert first == second


def test_an_image_too_large_for_its_share_is_run_alone(slide, tmp_path, capsys):
    arguments = ["run", str(slide), "-o", str(tmp_path / "a"), "--saliency", "valid", "--memory"]
    assert main([*arguments, "1MiB"]) == 2
    least = int(re.search(r"--memory (\d+)MiB", capsys.readouterr().err)[1])
    while main([*arguments, f"{least}MiB"]) == 2:  # the look first, then what the plan needs
        least = int(re.search(r"--memory (\d+)MiB", capsys.readouterr().err)[1])
    copy = tmp_path / "copy.tif"
    copy.write_bytes(slide.read_bytes())
    both = ["run", str(slide), str(copy), "-o", str(tmp_path / "b"), "--saliency", "valid", "--memory", f"{least}MiB", "--json"]
    capsys.readouterr()
    assert main(both) == 0
    assert [line["status"] for line in lines(capsys)] == ["done", "done"]
