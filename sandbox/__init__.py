"""Runs programs that a model wrote, and judges them. Imports nothing of the other packages. See docs/sandbox.md."""

from sandbox.errors import SandboxError
from sandbox.judge import Judging, Sandbox, processors
from sandbox.types import Capabilities, Limits, Problem, Program, Report, Test, TestReport, Verdict
