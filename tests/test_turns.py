"""Turns on a device: one at a time, the first run first, nobody forgotten."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.turns import Line, Turn


class TestLine:
    def test_the_first_who_asks_has_the_device(self) -> None:
        line = Line()
        first, second = line.ask(1), line.ask(0)
        assert first.called.is_set()
        assert not second.called.is_set()

    def test_the_lower_rank_goes_first_and_within_a_rank_who_asked_first(self) -> None:
        line = Line()
        tickets = {name: line.ask(rank) for name, rank in (("holds", 5), ("late run", 2), ("early run", 1), ("early run again", 1))}
        order = []
        while tickets:
            called = [name for name, ticket in tickets.items() if ticket.called.is_set()]
            assert len(called) == 1
            order += called
            tickets.pop(called[0]).give_up()
        assert order == ["holds", "early run", "early run again", "late run"]

    def test_a_ticket_that_is_not_used_holds_nobody_up(self) -> None:
        line = Line()
        holds, gone, waits = line.ask(0), line.ask(0), line.ask(1)
        gone.give_up()
        gone.give_up()
        holds.give_up()
        assert waits.called.is_set()
        called_but_gone = line.ask(0)
        waits.give_up()
        last = line.ask(1)
        called_but_gone.give_up()
        assert last.called.is_set()

    def test_an_error_gives_the_device_up(self) -> None:
        turn = Turn()
        with pytest.raises(KeyError), turn.ask():
            raise KeyError
        assert turn.ask().called.is_set()

    def test_threads_never_meet_and_all_are_served(self) -> None:
        line, inside, served = Line(), [], []

        def work(rank: int) -> None:
            chance = random.Random(rank)
            turn = Turn(line, rank)
            for _ in range(50):
                ticket = turn.ask()
                if chance.random() < 0.2:
                    ticket.give_up()
                    continue
                with ticket:
                    inside.append(rank)
                    time.sleep(0)
                    assert inside == [rank]
                    inside.clear()
                served.append(rank)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert set(served) == set(range(4))
        assert line.ask(9).called.is_set()


class TestDevices:
    def test_runs_share_a_line_in_the_order_they_joined(self) -> None:
        devices, cpu = Devices("cpu"), torch.device("cpu")
        first, second = devices.joined(), devices.joined()
        holds = second.turn(cpu).ask()
        later, sooner = second.turn(cpu).ask(), first.turn(cpu).ask()
        holds.give_up()
        assert sooner.called.is_set()
        assert not later.called.is_set()
