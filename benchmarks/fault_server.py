"""`patchdrive` in processes of their own, each forked from this one, which has imported everything and started nothing.

An order is a line of JSON on stdin, the answer a line on stdout: {"arguments": ..., ...} begins a process and is answered with its id;
{"ended": id} with its exit code (below zero: the signal that ended it), or null. A process is the program as its command runs it, to the
end of its interpreter.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from fault_inside import break_calls

from patchdrive.pipeline import cli


def serve() -> dict[str, Any] | None:
    """Answer orders until there are no more; in a forked process: the order it was forked for."""
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        if "ended" in order:
            child, status = os.waitpid(order["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if child else None
        else:
            answer = os.fork()
            if not answer:
                return order
        print(json.dumps(answer), flush=True)
    return None


def become(order: dict[str, Any]) -> list[str]:
    """Make this process the one that the order asks for; the arguments of its command."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["listened"]:
        os.dup2(os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 1)
    else:  # whoever read this pipe has gone
        listener, speaker = os.pipe()
        os.close(listener)
        os.dup2(speaker, 1)
    os.dup2(os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    os.environ.update(order["environment"])
    if order["files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order["files"], order["files"]))
    if order["user"]:
        os.setgroups([])
        os.setgid(order["user"])
        os.setuid(order["user"])
    break_calls()
    return list(order["arguments"])


if __name__ == "__main__":
    asked = serve()
    sys.exit(0 if asked is None else cli.main(become(asked)))
