"""The index of many reports: what it says, in which order, that it stands alone, and that a bad store costs only itself."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import tifffile
from test_report import Page
from test_result import SETTINGS, SMALL, Impatient, Means, Thirds, place, scene

from patchdrive.pipeline.causes import causes_of, without_folder
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.report_index import IndexCard, render_index
from patchdrive.pipeline.report_many import index_path, stores_in, write_reports
from patchdrive.pipeline.report_parts import MARK, duration, small
from patchdrive.pipeline.run import run
from patchdrive.readers import MemoryImage, open_image
from patchdrive.readers.errors import PatchdriveError, SettingsError, StoreError

COUNTS = ("done", "skipped", "failed", "planned")
ODD = "<b> & 'q' #1 50%.zarr"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder as a run of many leaves it: done under an odd name, maps, failed, partial, and one that is damaged."""
    folder = tmp_path_factory.mktemp("results")
    run(MemoryImage([place(128, 192)]), Means(), folder / ODD, settings=SETTINGS)
    run(scene(120, 200), Thirds(), folder / "maps.zarr", settings=SETTINGS)
    run(MemoryImage([place(16 * 40, 16 * 30)]), Means(), folder / "part.zarr", settings=SMALL, watcher=Impatient())
    torn = tmp_path_factory.mktemp("private name") / "torn.tif"
    tifffile.imwrite(torn, place(256, 256), tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(torn) as file:
        offsets = [file.pages[0].dataoffsets[index] for index in (5, 10)]
    held = bytearray(torn.read_bytes())
    for offset in offsets:
        held[offset : offset + 4] = b"\xff" * 4
    torn.write_bytes(held)
    with closing(open_image(torn)) as image:
        run(image, Means(), folder / "torn.zarr", settings=SETTINGS)
    shutil.copytree(folder / "maps.zarr", folder / "bad.zarr")
    shutil.copytree(folder / "maps.patchdrive", folder / "bad.patchdrive")
    for chunk in (folder / "bad.zarr" / "images" / "thumbnail").rglob("c/*"):
        if chunk.is_file():
            chunk.write_bytes(b"rubbish")
    for part in (folder / "bad.zarr" / "images" / "thumbnail" / "0").rglob("zarr.json"):
        part.write_text("{")
    return folder


@pytest.fixture(scope="module")
def index(results, tmp_path_factory):
    """Its index page, written and read."""
    out = tmp_path_factory.mktemp("pages")
    stores = stores_in([results])
    ended = list(write_reports(stores, out, index_path([results], out)))
    path = out / "index.html"
    return SimpleNamespace(path=path, page=Page(path), html=path.read_text(), ended=ended, stores=stores)


def test_an_index_stands_alone(index):
    assert index.page.tags.isdisjoint({"script", "link", "iframe", "b", "q"})
    assert "http" not in index.html
    assert "url(" not in index.html
    assert len(index.page.images) == 2 * 4
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in index.page.images)
    assert MARK in index.html


def test_every_link_of_an_index_leads_somewhere(index):
    pages = [link for link in index.page.links if not link.startswith("#")]
    assert len(pages) == 4
    assert all((index.path.parent / unquote(link)).is_file() for link in pages)
    assert all(f'id="{link[1:]}"' in index.html for link in index.page.links if link.startswith("#"))


def test_an_index_tells_first_what_needs_a_look(index):
    order = ["bad", "torn", "part", "<b> & 'q' #1 50%", "maps"]
    section = index.page.text.index("Look at these first")
    places = [index.page.text.index(name, section) for name in order]
    assert places == sorted(places)
    assert places[2] < index.page.text.index("Done 2") < places[3]
    assert "2 done, 1 partial, 1 failed, 1 unreadable" in index.page.text


def test_the_totals_of_an_index_add_up(results, index):
    reports = [json.loads(path.read_text()) for path in sorted(results.glob("*.done.json"))]
    assert len(reports) == 3
    totals = {name: sum(report[name] for report in reports) for name in ("planned", "done", "skipped", "failed")}
    assert totals["failed"] > 0
    summary = index.html[: index.html.index("<h2>What was not computed")]
    assert f"</span>failed</dt><dd>{totals['failed']:,}</dd>" in summary
    assert f"</span>done</dt><dd>{totals['done'] + 1024:,}</dd>" in summary
    assert f"<dt>planned</dt><dd>{totals['planned'] + 1200:,}</dd>" in summary
    assert "</span>not yet computed</dt><dd>176</dd>" in summary


def test_causes_name_no_folder_and_lead_to_their_images(index):
    causes = index.html[index.html.index("<h2>What was not computed") : index.html.index("<h2>Look at these first")]
    assert "cannot be decoded" in causes
    assert causes.count("<tr>") == 2
    assert ">torn</a>" in causes
    assert "private name" not in index.html
    torn = (index.path.parent / "torn.report" / "index.html").read_text()
    assert "cannot be decoded" in torn
    assert "private name" not in torn


def test_a_bad_store_costs_only_itself(results, tmp_path, capsys, index):
    errors = [ended for ended in index.ended if isinstance(ended, PatchdriveError)]
    assert len(errors) == 1
    assert len(index.ended) == len(index.stores) + 1
    assert not (index.path.parent / "bad.report").exists()
    assert "patchdrive verify" in index.page.text
    good, bad = str(results / ODD), str(results / "bad.zarr")
    assert main(["report", bad, good, "-o", str(tmp_path)]) == 3
    said, first = capsys.readouterr(), (tmp_path / "index.html").read_bytes()
    assert said.out.splitlines()[-1] == str(tmp_path / "index.html")
    assert said.err.count("\n") == 1
    assert "bad.zarr cannot be read" in said.err
    assert main(["report", good, bad, "-o", str(tmp_path)]) == 3
    assert (tmp_path / "index.html").read_bytes() == first
    assert main(["report", bad, "-o", str(tmp_path)]) == 2


def test_one_store_has_no_index_and_a_foreign_file_is_kept(results, tmp_path, capsys):
    store = results / "maps.zarr"
    assert main(["report", str(store), "-o", str(tmp_path)]) == 0
    assert not (tmp_path / "index.html").exists()
    (tmp_path / "index.html").write_text("<p>mine")
    shutil.rmtree(tmp_path / "maps.report")
    assert main(["report", str(store), str(results / ODD), "-o", str(tmp_path)]) == 2
    assert "move it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<p>mine"


def test_stores_of_several_folders_want_one_for_their_index(results, tmp_path):
    shutil.copytree(results / "maps.zarr", tmp_path / "maps.zarr")
    named = [results / "maps.zarr", tmp_path / "maps.zarr"]
    assert index_path(named, None) is None
    assert index_path(named, tmp_path) == tmp_path / "index.html"
    with pytest.raises(SettingsError, match=r"several of these stores are called maps\.zarr"):
        list(write_reports(named, tmp_path, None))
    assert stores_in([tmp_path, tmp_path / "maps.zarr"]) == [tmp_path / "maps.zarr"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no"):
        stores_in([tmp_path / "empty"])


def test_an_index_of_four_hundred_is_light():
    cards = [
        IndexCard(name=f"slide {at}", status="done", link=f"{at}/", counts=dict.fromkeys(COUNTS, at), seconds=60.0) for at in range(400)
    ]
    page = render_index(cards[::-1])
    assert page == render_index(cards)
    assert page.count("<article") == 400
    assert f"<dd>{400 * 399 // 2 * 4:,}</dd>" in page
    assert f"<dd>{duration(400 * 60)}</dd>" in page
    assert len(page) < 400 * 1500


def test_reasons_that_differ_in_numbers_are_one_cause():
    reasons = {
        "a": {"failed: tile 1, 2 is torn": 3, "failed: tile 2, 2 is torn": 5, "skipped: no valid pixel": 90},
        "b": {"failed: tile 7, 1 is torn": 1, "done with a hole: tile 7 is torn": 2},
    }
    torn, empty, holes = causes_of(reasons)
    assert (torn.state, torn.told, torn.alike, torn.patches, torn.images) == ("failed", "tile 2, 2 is torn", 2, 9, ("a", "b"))
    assert (empty.state, empty.patches, empty.images) == ("skipped", 90, ("a",))
    assert (holes.state, holes.alike) == ("done with a hole", 0)


@pytest.mark.parametrize(
    ("told", "source", "words"),
    [
        ("/p/name/x.tif, level 0 is torn", "/p/name/x.tif", "level 0 is torn"),
        ("failed: /p/name/x.tif: torn", "/p/name/x.tif", "failed: x.tif: torn"),
        ("/p/name/B02.jp2, level 0", "/p/name/scene", "B02.jp2, level 0"),
        ("x.tif and/or y", "x.tif", "x.tif and/or y"),
        ("x.tif and/or y", "", "x.tif and/or y"),
    ],
)
def test_words_lose_the_folder(told, source, words):
    assert without_folder(told, source) == words


@pytest.mark.parametrize(("height", "width", "most"), [(10, 4, 5), (1, 1000, 50), (7, 7, 9), (1024, 700, 192)])
def test_small_pictures_are_means_of_blocks(height, width, most):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    shown, cell = small(pixels, most), -(-max(height, width) // most)
    assert max(shown.shape[:2]) <= most
    if min(height, width) >= cell:
        np.testing.assert_array_equal(shown[0, 0], np.rint(pixels[:cell, :cell].mean(axis=(0, 1))))


@pytest.mark.parametrize(("seconds", "told"), [(0.04, "0.0 s"), (61, "61.0 s"), (600, "10 min"), (36000, "10 h 0 min")])
def test_durations_read_well(seconds, told):
    assert duration(seconds) == told
