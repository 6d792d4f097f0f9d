"""The configuration of an agent: its environment variables, see `contract.Env`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import AGENT_PORT, Env
from finetune_api.errors import Problem, SpecError


@dataclass(frozen=True)
class AgentConfig:
    """The configuration of one agent.

    Attributes:
        job: path of the FineTuneJob.
        uid: identity of the run.
        node: index of this pod; 0 leads.
        token: bearer token of the gang.
        host: address under which the other nodes reach this one.
        port: port of the leader's server; 0 = any free one.
        threads: intra-op threads of each worker; 0 = the cores divided by the workers.
        parent: pid of the process to die with; 0 = none.
    """

    job: Path
    uid: str
    node: int
    token: str
    host: str
    port: int
    work: Path
    threads: int
    parent: int
    termination_log: Path | None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "AgentConfig":
        """Read and check the environment.

        Raises:
            SpecError: a variable is missing or malformed.
        """
        log = environ.get(Env.TERMINATION_LOG)
        return cls(
            job=Path(_required(environ, Env.JOB)),
            uid=_required(environ, Env.JOB_UID),
            node=_number(environ, Env.NODE_INDEX, _required(environ, Env.NODE_INDEX)),
            token=_required(environ, Env.TOKEN),
            host=environ.get(Env.ADVERTISE_HOST, "127.0.0.1"),
            port=_number(environ, Env.AGENT_PORT, str(AGENT_PORT)),
            work=Path(_required(environ, Env.WORK_DIR)),
            threads=_number(environ, Env.THREADS, "0"),
            parent=_number(environ, Env.PARENT_PID, "0"),
            termination_log=Path(log) if log else None,
        )

    def worker_threads(self, local_ranks: int) -> int:
        """Return the intra-op threads of each worker, when this node runs `local_ranks` of them."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // local_ranks)


def _required(environ: Mapping[str, str], name: Env) -> str:
    if value := environ.get(name):
        return value
    raise _wrong(name, "is not set")


def _number(environ: Mapping[str, str], name: Env, default: str) -> int:
    value = environ.get(name, default)
    if not value.isdigit():
        raise _wrong(name, f"is {value!r}, not a number")
    return int(value)


def _wrong(name: Env, what: str) -> SpecError:
    return SpecError(
        Problem(
            code="EnvironmentInvalid",
            field=f"env.{name.value}",
            message=f"the environment variable {name.value} {what}",
            cure="start the agent through the operator or `finetune run`, which set it",
        )
    )
