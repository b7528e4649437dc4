"""The faults of models, processes and clocks."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from fault_lab import Gate, Lab, Row, records, store_of, tree, wait_until

_FUTURE, _PAST = 4102444800, 86400  # 1 January 2100, 2 January 1970


def model_raises(lab: Lab, row: Row) -> None:
    """The model raises at one batch, with another image in flight: a bug in a user's code."""
    out, second = lab.folder("raises"), lab.copy("raises-second")
    with second.open("ab") as file:  # another identity
        file.write(b"other")
    arguments = [*lab.command(out), str(second)]
    ended = lab.begin(arguments, {"FAULT_MODEL": "raise:60"}).wait()
    row.met(ended, codes=(1,), words="weights of layer 3", bug=True)
    row.require(any("fault_inside.py" in line for line in ended.err), "the traceback does not name the file of the model")
    row.store = lab.told(out)
    row.require(records(out) >= 2, f"{records(out)} blocks kept of the 60 batches of both images")
    again = lab.begin(arguments).wait()
    stores = sorted(out.glob("*.zarr"))
    tables = [{name: digest for name, digest in tree(store).items() if name != "zarr.json"} for store in stores]
    wanted = {name: digest for name, digest in lab.undisturbed.items() if name != "zarr.json"}
    row.require(again.code == 0 and tables == [wanted, wanted], f"the next run: {again.code}, {again.err[-2:]}")
    row.again = f"exit {again.code}; both images done, bytes equal" if tables == [wanted, wanted] else "BYTES DIFFER"


def model_out_of_memory(lab: Lab, row: Row) -> None:
    """The model runs out of the device's memory above 16 patches."""
    out = lab.folder("memory")
    ended = lab.run(out, {"FAULT_MODEL": "memory:16"})
    row.met(ended, codes=(0,))
    row.store = lab.told(out)
    sizes = json.loads(next(out.glob("*.patchdrive/sizes.json")).read_text())
    row.store += f"; batch size {sizes['batch_size']}, was {sizes['was']}"
    row.require((sizes["batch_size"], sizes["was"], ended.report["batch_size"]) == (16, [64, 32], 16), f"recorded: {sizes}")
    lab.resumed(row, out)


def model_never_fits(lab: Lab, row: Row) -> None:
    """Not even one patch fits on the device."""
    out = lab.folder("never")
    row.met(lab.run(out, {"FAULT_MODEL": "memory:0"}), codes=(2,), words="do not fit on cpu")
    row.store = lab.told(out)
    ended = lab.run(out)
    row.again = f"exit {ended.code}"
    row.require(ended.code == 0, f"the next run: {ended}")


def model_gives_nan(lab: Lab, row: Row) -> None:
    """The model's answer for one patch is not a number."""
    out = lab.folder("nan")
    row.met(lab.run(out, {"FAULT_MODEL": "nan:40"}), codes=(2,), words="not finite for patch")
    row.store = lab.told(out)
    row.require(records(out) == 2, f"{records(out)} blocks recorded")
    lab.resumed(row, out)


def two_runs(lab: Lab, row: Row) -> None:
    """The same command twice at once."""
    out, gate = lab.folder("two"), Gate(lab.root / "two-gate")
    first = lab.begin(lab.command(out), gate.environment)
    gate.reached(out)
    row.met(lab.run(out), codes=(75,), words=f"process {first.pid}", within=10.0)
    row.met(lab.run(out, None, "--overwrite"), codes=(75,), words=f"process {first.pid}", within=10.0)
    row.store = lab.told(out)
    gate.open()
    row.require(first.wait().code == 0, "the first run was disturbed")
    row.require(tree(store_of(out)) == lab.undisturbed, "the first run's bytes differ")
    lab.resumed(row, out)


def killed(lab: Lab, out: Path) -> None:
    """A run that dies in its third block."""
    gate = Gate(out.with_name(f"{out.name}-gate"))
    process = lab.begin(lab.command(out), gate.environment)
    gate.reached(out)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def other_host(lab: Lab, row: Row, *, pace: str = "") -> None:
    """The process is killed, and the next run is on another machine, where nobody sees that it is dead."""
    out = lab.folder("host")
    killed(lab, out)
    row.store = lab.told(out)
    ended = lab.run(out, {"FAULT_HOST": "another", **({"FAULT_PACE": pace} if pace else {})})
    row.met(ended, codes=(0,), within=60.0)
    row.require(tree(store_of(out)) == lab.undisturbed, "bytes differ")
    row.require(ended.seconds >= (1 if pace else 30), f"taken over after {ended.seconds:.1f} s")
    lab.resumed(row, out)
    row.again = f"taken over and done after {ended.seconds:.0f} s of watching; {row.again}"


def other_host_alive(lab: Lab, row: Row) -> None:
    """The process lives, and the next run is on another machine, which can only watch it."""
    out, gate = lab.folder("alive"), Gate(lab.root / "alive-gate")
    first = lab.begin(lab.command(out), gate.environment)
    gate.reached(out)
    row.met(lab.run(out, {"FAULT_HOST": "another"}), codes=(75,), words=f"process {first.pid}")
    row.store = lab.told(out)
    gate.open()
    row.require(first.wait().code == 0, "the first run was disturbed")
    lab.resumed(row, out)


def clock_jumps(lab: Lab, row: Row) -> None:
    """Every file of a killed run is of the year 2100, then of 1970; and a run whose wall clock jumps by two years at each look."""
    for name, when in (("future", _FUTURE), ("past", _PAST)):
        out = lab.folder(f"clock-{name}")
        killed(lab, out)
        for path in out.rglob("*"):
            os.utime(path, (when, when))
        row.store = lab.told(out)
        lab.resumed(row, out)
    out = lab.folder("clock-jumps")
    ended = lab.run(out, {"FAULT_CLOCK": "1"})
    row.met(ended, codes=(0,))
    row.require(tree(store_of(out)) == lab.undisturbed, "bytes differ")
    total = ended.report["seconds"]["total"]
    row.require(0 < total <= ended.seconds, f"the report says {total} s of {ended.seconds:.1f}")


def asked_twice(lab: Lab, row: Row) -> None:
    """SIGTERM, and again before the block in hand is finished."""
    out, gate = lab.folder("twice"), Gate(lab.root / "twice-gate")
    process = lab.begin(lab.command(out), gate.environment)
    gate.reached(out)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.8)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    row.met(process.wait(), codes=(75,), words="finishing the block in hand")
    row.require(time.monotonic() - asked < 1, "it did not leave at once")
    row.store = lab.told(out)
    lab.resumed(row, out)


def killed_plainly(lab: Lab, row: Row) -> None:
    """SIGKILL in the third block."""
    out = lab.folder("killed")
    killed(lab, out)
    row.exits.append(-signal.SIGKILL)
    row.store = lab.told(out)
    lab.resumed(row, out)


def nobody_listens(lab: Lab, row: Row) -> None:
    """Whoever read stdout has gone: `patchdrive run ... | head -1`."""
    out = lab.folder("listens")
    row.met(lab.begin(lab.command(out), listened=False).wait(), codes=(75,), words="nobody reads its output")
    row.store = lab.told(out)
    lab.resumed(row, out)


def stopped_and_continued(lab: Lab, row: Row) -> None:
    """The process stands still (SIGSTOP) while another machine, patient for two seconds, takes its work over; then it goes on."""
    out, gate = lab.folder("sleeper"), Gate(lab.root / "sleeper-gate")
    pace = {"FAULT_PACE": json.dumps({"beat": 0.2, "patience": 2.0})}
    first = lab.begin(lab.command(out), {**gate.environment, **pace})
    gate.reached(out)
    os.kill(first.pid, signal.SIGSTOP)
    other = lab.begin(lab.command(out), {"FAULT_HOST": "another", **pace})
    row.require(other.wait().code == 0, "the work was not taken over")
    gate.open()
    os.kill(first.pid, signal.SIGCONT)
    row.met(first.wait(), codes=(75,), words="another process took this work over")
    wait_until(lambda: bool(list(out.glob("*.done.json"))), "no report")
    row.store = lab.told(out)
    lab.resumed(row, out)
