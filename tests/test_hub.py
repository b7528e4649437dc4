"""Models of the Hugging Face hub: by the real huggingface_hub, over a cache made here, and over a small hub of our own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from examples import SMALL, Small
from safetensors.torch import save
from tiny_hub import COMMIT, Files, Served, serving

from patchdrive.models import ImageTraits, PatchModel, Segmenter, SegmenterConfig, load_model, save_program
from patchdrive.models.hub import find_repository, origin_of
from patchdrive.models.segmenter import save_segmenter
from patchdrive.pipeline.cli import main
from patchdrive.readers.errors import ModelError

pytest.importorskip("huggingface_hub", reason="needs the extra hub")
constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")

OTHER = "fedcba9876" * 4
CARD = "---\nlicense: {}\n---\n# A model\n"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache, empty, and nobody else to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, identity: str, files: Files, *, commit: str = COMMIT, refs: tuple[str, ...] = ("main",)) -> None:
    """A repository as huggingface_hub leaves it: `refs` hold a commit, its snapshot links to blobs by their hash."""
    folder = cache / f"models--{identity.replace('/', '--')}"
    for ref in refs:
        path = folder / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob, link = folder / "blobs" / hashlib.sha256(content).hexdigest(), folder / "snapshots" / commit / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> bytes:
    """Weights of our own, in a file."""
    path = tmp_path_factory.mktemp("weights") / "seg.safetensors"
    save_segmenter(Segmenter(SegmenterConfig(channels=3, classes=("a", "b"), width=4, dilations=(1,), size=32), seed=5), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def renamed(segmenter) -> bytes:
    """The same with another class: another model."""
    other = segmenter.replace(b'\\"a\\"', b'\\"c\\"')
    assert other != segmenter
    return other


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    save_program(Small(), SMALL, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def foreign() -> bytes:
    """Weights that say nothing of themselves, as everybody else's."""
    return save({"weight": torch.zeros(2, 2)})


def test_our_own_weights_by_branch_tag_and_commit(cache, segmenter):
    put(cache, "lab/land", {"weights.safetensors": segmenter, "README.md": CARD.format("mit").encode()}, refs=("main", "v1"))
    digests = {load_model(f"hf-hub:lab/land{revision}").digest for revision in ("", "@main", "@v1", f"@{COMMIT}")}
    assert len(digests) == 1
    assert load_model("hf-hub:lab/land").spec.name == "segmenter"


def test_a_program_and_which_of_several(cache, segmenter, program):
    put(cache, "lab/both", {"a/small.pt2": program, "weights.safetensors": segmenter})
    with pytest.raises(
        ModelError, match=rf"several models, a/small\.pt2, weights\.safetensors; say which: hf-hub:lab/both@{COMMIT}:a/small"
    ):
        load_model("hf-hub:lab/both")
    model = load_model("hf-hub:lab/both:a/small.pt2")
    assert model.digest == hashlib.sha256(program).hexdigest()
    assert origin_of("hf-hub:lab/both:a/small.pt2").name == f"hf-hub:lab/both@{COMMIT}:a/small.pt2"
    assert load_model("hf-hub:lab/both:weights.safetensors").digest != model.digest


def test_a_new_commit_is_another_model_and_the_pinned_name_is_not(cache, segmenter, renamed):
    put(cache, "lab/land", {"model.safetensors": segmenter})
    first = origin_of("hf-hub:lab/land")
    before = load_model("hf-hub:lab/land").digest
    put(cache, "lab/land", {"model.safetensors": renamed}, commit=OTHER)
    assert load_model("hf-hub:lab/land").digest != before
    assert load_model(first.name).digest == before
    assert first.name.endswith(COMMIT)
    assert origin_of("hf-hub:lab/land").name.endswith(OTHER)


def test_a_run_tells_the_licence_and_records_the_commit(cache, segmenter, renamed, tmp_path, capsys):
    put(cache, "lab/land", {"model.safetensors": segmenter, "README.md": CARD.format("mit").encode()})
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), tile=(32, 32), photometric="rgb")
    command = ["run", str(slide), "-o", str(tmp_path / "out"), "--model", "hf-hub:lab/land", "--saliency", "valid"]
    assert main(command) == 0
    pinned = f"hf-hub:lab/land@{COMMIT}"
    assert f"patchdrive: hf-hub:lab/land, today {pinned}: licence mit; https://huggingface.co/lab/land\n" in capsys.readouterr().err
    (store,) = (tmp_path / "out").glob("*.zarr")
    (source,) = (tmp_path / "out").glob("*.patchdrive/source.json")
    assert json.loads(source.read_text())["models"] == [pinned]
    put(cache, "lab/land", {"model.safetensors": renamed}, commit=OTHER)
    assert main(["verify", str(store)]) == 0
    assert main(command) == 2
    assert "holds another run: model.digest was" in capsys.readouterr().err
    assert main(["plan", str(slide), "--model", "hf-hub:lab/gone"]) == 2
    assert "is not in the cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (CARD.format("cc-by-nc-nd-4.0"), "licence cc-by-nc-nd-4.0"),
        (
            "---\nlicense: other\nlicense_name: lab-terms\nlicense_link: https://lab.org/x\n---\n",
            "licence other lab-terms https://lab.org/x",
        ),
        ("---\nlicense: [mit, 'x\\e[2J']\n---\n", "licence ['mit', 'x\\\\e[2J']"),
        ('---\nlicense: "mit\\e[2J"\n---\n', "licence mit[2J"),
        ("# no header\n", "its model card names no licence"),
        ("---\nlicense: [\n---\n", "its model card names no licence"),
        (None, "no licence is known, for its model card is not in the cache"),
    ],
)
def test_the_licence_is_said(cache, card, said):
    put(cache, "lab/land", {"config.json": b"{}"} if card is None else {"README.md": card.encode()})
    assert str(origin_of(f"hf-hub:lab/land@{COMMIT}")) == f"hf-hub:lab/land@{COMMIT}: {said}; https://huggingface.co/lab/land"
    assert str(origin_of("hf-hub:lab/land")).startswith(f"hf-hub:lab/land, today hf-hub:lab/land@{COMMIT}: ")
    assert origin_of("descriptor") is None


def test_pickles_are_refused_and_never_opened(cache, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    put(cache, "lab/old", {"config.json": b'{"architecture": "resnet18"}', "pytorch_model.bin": pickle.dumps(Evil())})
    for name in ("hf-hub:lab/old", "hf-hub:lab/old:pytorch_model.bin"):
        with pytest.raises(ModelError, match=r"nothing of it was run: pytorch_model\.bin is a pickle.*Ask its authors for \.safetensors"):
            load_model(name)
    assert not (tmp_path / "marker").exists()


def test_code_of_a_repository_is_never_run(cache, foreign, tmp_path):
    config = {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    code = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n"
    put(cache, "lab/own", {"config.json": json.dumps(config).encode(), "model.safetensors": foreign, "modeling_own.py": code.encode()})
    with pytest.raises(ModelError, match="names OwnModel of transformers, which patchdrive does not read"):
        load_model("hf-hub:lab/own")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "hf-hub:lab/gone", r"is not in the cache .*HF_HUB_OFFLINE=1 .*`hf download lab/gone --revision main`"),
        ({"a.txt": b""}, "hf-hub:lab/land@v9", r"is not in the cache .*`hf download lab/land --revision v9`"),
        ({"config.json": b"{}", "README.md": b""}, "hf-hub:lab/land",
         rf"holds of it only README\.md, config\.json.*`hf download lab/land model\.safetensors --revision {COMMIT}`"),
        ({"a.txt": b""}, "hf-hub:lab/land:b.pt2", rf"no b\.pt2 is there; .*a\.txt.*`hf download lab/land b\.pt2 --revision {COMMIT}`"),
        ({"a.txt": b""}, "hf-hub:lab/land:a.txt", r"a\.txt is none of \.safetensors"),
        ({"a.txt": b""}, "hf-hub:land", r"is not hf-hub:ORG/NAME"),
        ({"a.txt": b""}, "hf-hub:", r"is not hf-hub:ORG/NAME"),
        ({"a.txt": b""}, "hf-hub:lab/land@a@b", r"is not hf-hub:ORG/NAME"),
        ({"config.json": b"[", "model.safetensors": b""}, "hf-hub:lab/land", r"config\.json is not a JSON object"),
        ({"model.safetensors": b"junk"}, "hf-hub:lab/land", rf"hf-hub:lab/land@{COMMIT}: .*cannot be opened as \.safetensors"),
        ({"model.pt2": b"junk"}, "hf-hub:lab/land", rf"hf-hub:lab/land@{COMMIT}: .*cannot be opened as \.pt2"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(cache, files, name, message):
    if files:
        put(cache, "lab/land", files)
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_graph_of_onnx(cache):
    pytest.importorskip("onnx", reason="needs the extra onnx")
    put(cache, "lab/graph", {"model.onnx": b"junk"})
    with pytest.raises(ModelError, match=rf"hf-hub:lab/graph@{COMMIT}: .*cannot be opened as \.onnx"):
        load_model("hf-hub:lab/graph")


def test_a_config_that_is_not_in_the_cache_is_missed(cache, foreign):
    put(cache, "lab/part", {"model.safetensors": foreign})
    with pytest.raises(
        ModelError, match=r"metadata has no 'patchdrive'.*nor is its config\.json in the cache.*hf download lab/part config\.json"
    ):
        load_model("hf-hub:lab/part")


def test_huggingface_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    with pytest.raises(ModelError, match=r"pip install 'patchdrive\[hub\]'"):
        load_model("hf-hub:lab/land")


@pytest.fixture
def online(cache, monkeypatch, segmenter) -> Iterator[str]:
    repositories = {
        "lab/land": Served(files={"model.safetensors": segmenter, "README.md": CARD.format("mit").encode()}),
        "lab/gated": Served(files={"model.safetensors": segmenter}, gated=True),
    }
    with serving(repositories) as address:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield address


def test_what_is_fetched_once_is_there_offline(online, monkeypatch):
    assert str(origin_of("hf-hub:lab/land")).startswith(f"hf-hub:lab/land, today hf-hub:lab/land@{COMMIT}: licence mit")
    fetched = load_model("hf-hub:lab/land")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("hf-hub:lab/land", f"hf-hub:lab/land@{COMMIT}"):
        assert load_model(name).digest == fetched.digest
    assert find_repository("hf-hub:lab/land").files == ("README.md", "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:lab/gated", r"is gated: ask for access at https://huggingface\.co/lab/gated, and say who you are with `hf auth login`"),
        ("hf-hub:lab/gone", r"there is no lab/gone on the hub, or it is private"),
        ("hf-hub:lab/land@v9", r"lab/land has no revision v9; see https://huggingface\.co/lab/land/commits/main"),
    ],
)
def test_what_the_hub_refuses_is_said(online, name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_hub_that_does_not_answer(online, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot be had from http://127\.0\.0\.1:9: .*with HF_HUB_OFFLINE=1"):
        load_model("hf-hub:lab/land")


@pytest.mark.slow
def test_the_variables_of_huggingface_hub_are_honoured(tmp_path, segmenter):
    put(tmp_path / "home" / "hub", "lab/land", {"model.safetensors": segmenter})
    program = "from patchdrive.models import load_model; print(load_model('hf-hub:lab/land').digest)"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    (tmp_path / "seg.safetensors").write_bytes(segmenter)
    assert done.stdout.strip() == load_model(str(tmp_path / "seg.safetensors")).digest


@pytest.fixture
def published(cache, tmp_path):
    """A function that puts a network into the cache as timm itself writes it; with a config that is changed, or other weights."""
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=7, global_pool="token").eval()
    timm.models.save_for_hf(network, tmp_path / "saved", model_args={"global_pool": "token"}, safe_serialization=True)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "custom_load": True, "url": "http://127.0.0.1:9/x"}

    def publish(*, weights=None, **changes) -> torch.nn.Module:
        content = (tmp_path / "saved" / "model.safetensors").read_bytes() if weights is None else save(weights)
        put(cache, "lab/Vit-2.h", {"config.json": json.dumps({**config, **changes}).encode(), "model.safetensors": content})
        return network

    return publish


def test_a_network_of_timm(published):
    network = published()
    model = load_model("hf-hub:lab/Vit-2.h", ImageTraits(dtype="uint16"))
    assert isinstance(model, PatchModel)
    assert (model.spec.name, model.spec.size, model.spec.mean, model.spec.std) == ("Vit_2_h", 160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.spec.scale == 1 / 65535
    pixels = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        wanted = network.forward_head(network.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(wanted, network.forward_features(pixels)[:, 0])  # the pooling that model_args ask for
    torch.testing.assert_close(model(pixels)["features"], wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "no_such_network"}, "has no architecture 'no_such_network'"),
        ({"architecture": "hf-hub:lab/other"}, "has no architecture 'hf-hub:lab/other'"),
        ({"architecture": 3}, "has no architecture 3"),
        ({"architecture": "test_resnet"}, "cannot load it as test_resnet"),
        ({"model_args": {"checkpoint_path": "/x.pth"}}, "model_args may say how a network is built, not checkpoint_path"),
        ({"model_args": {"pretrained_strict": False}}, "not pretrained_strict"),
        ({"model_args": {"no_such": 1}}, "cannot load it"),
        ({"model_args": [1]}, "are objects"),
        ({"weights": {"head.weight": torch.zeros(7, 64)}}, "cannot load it"),
    ],
)
def test_a_config_of_timm_that_does_not_fit_is_said(published, changes, message):
    published(**changes)
    with pytest.raises(ModelError, match=rf"hf-hub:lab/Vit-2\.h@{COMMIT}: .*{message}"):
        load_model("hf-hub:lab/Vit-2.h")


def test_timm_is_an_extra_of_its_own(cache, foreign, monkeypatch):
    put(cache, "lab/net", {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": foreign})
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'patchdrive\[timm\]'"):
        load_model("hf-hub:lab/net")
