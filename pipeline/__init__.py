"""Pipeline: the only folder that imports both readers and models."""

from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.report import write_report
from patchdrive.pipeline.result import Result, open_result
from patchdrive.pipeline.run import run
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shard import Shard
from patchdrive.pipeline.verify import verify
from patchdrive.pipeline.watcher import Watcher

__all__ = ["Plan", "Result", "RunReport", "RunSettings", "Shard", "Watcher", "open_result", "run", "verify", "write_report"]
