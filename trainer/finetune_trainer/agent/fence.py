"""The fence: a node without a leader kills its workers, because another gang may be training the same run."""

import asyncio
import logging
import time

from finetune_api.beats import AgentState
from finetune_api.contract import ExitCode
from finetune_trainer.agent.heart import Heart
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.workers import Workers

log = logging.getLogger("agent")

FENCE_SECONDS = 30.0


class Fence:
    """Watches how long this node has been without a leader.

    Args:
        node: the fence writes `state`.
    """

    def __init__(self, node: NodeState, workers: Workers, heart: Heart) -> None:
        self._node = node
        self._workers = workers
        self._heart = heart

    async def run(self) -> ExitCode:
        """Kill the workers whenever the leader is silent for too long. Return if this node was asked to stop, since no
        leader can release it."""
        while True:
            await asyncio.sleep(1)
            if time.monotonic() - self._heart.heard <= FENCE_SECONDS:
                continue
            if self._node.state in {AgentState.RUNNING, AgentState.ENDED}:
                log.error("no leader for %g s: killing the workers", FENCE_SECONDS)
                await self._workers.kill()
                self._node.state = AgentState.READY
            if self._node.draining:
                return ExitCode.DRAINED
