"""The directive of each node, and the beats that wait until it changes."""

import asyncio
import contextlib

from finetune_api.beats import Action, Beat, Directive
from finetune_api.contract import ExitCode
from finetune_api.errors import EXIT_CODES
from finetune_trainer.agent import gang as policy
from finetune_trainer.agent.parts import uploading
from finetune_trainer.agent.roster import Gang


class DirectiveBoard:
    """Publishes directives. Most nodes have one and the same, so that it is made once for all of them."""

    def __init__(self) -> None:
        self._common = Directive(generation=0, action=Action.HOLD, reason="generation.json")
        self._directives: dict[int, Directive] = {}
        self._polls: dict[int, asyncio.Event] = {}  # by node: set when its directive has changed

    def directive(self, node: int) -> Directive:
        """Return the directive of a node now."""
        return self._directives.get(node, self._common)

    async def next_directive(self, gang: Gang, beat: Beat, patience: float) -> Directive:
        """Return the answer to a beat: at once if it differs from the directive that the node has, else after
        `patience` seconds."""
        if beat.incarnation in gang.replaced:
            reason = "another agent has taken the place of this one"
            return Directive(generation=gang.generation, action=Action.STOPPED, reason=reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.directive(beat.node).key == beat.have:
                    await self._polls.setdefault(beat.node, asyncio.Event()).wait()
        return self.directive(beat.node)

    def forget(self, node: int) -> None:
        """Drop the directive of a node whose agent was replaced: it was meant for the agent before."""
        self._directives.pop(node, None)

    def hold(self, gang: Gang, decision: policy.Wait | policy.Fetch) -> str:
        """Publish a directive for a gang without workers, on the next `publish`; return its reason."""
        match decision:
            case policy.Wait(missing):
                self._common = _without_workers(gang, Action.HOLD, missing)
            case policy.Fetch(ranks, resume):
                fetch = _without_workers(gang, Action.FETCH, f"checkpoint {resume.step} is fetched")
                self._common = fetch.model_copy(update={"ranks": dict(ranks), "resume": resume})
        return self._common.reason

    def publish(self, gang: Gang, draining: bool, now: float) -> None:
        """Update the directive of every node, and answer the beats of those whose directive has changed.

        Args:
            draining: whether the workers are asked to save and stop.
            now: seconds on the leader's monotonic clock.
        """
        self._common = _common(gang, draining) or self._common
        is_over = gang.done_stored or gang.failure is not None
        for node, member in gang.members.items():
            before = self._directives.get(node)
            self._directives[node] = self._common
            if not is_over and member.beat.draining and policy.may_leave(gang, node, now):
                stopped = Directive(generation=gang.generation, action=Action.STOPPED, reason="asked to stop")
                self._directives[node] = stopped
            if before is None or before.key != self._directives[node].key:
                poll = self._polls.pop(node, None)
                if poll is not None:
                    poll.set()


def _common(gang: Gang, draining: bool) -> Directive | None:
    """Return the directive of all nodes; None for a gang without workers, whose directive `hold` has set."""
    if gang.done_stored:
        return Directive(generation=gang.generation, action=Action.DONE)
    if gang.failure:
        code = EXIT_CODES.get(gang.failure.category, ExitCode.GANG_FAILED)
        failed = _without_workers(gang, Action.FAILED, gang.failure.message)
        return failed.model_copy(update={"exit_code": int(code)})
    if gang.rendezvous is None:
        return None
    return Directive(
        generation=gang.generation,
        action=Action.DRAIN if draining else Action.RUN,
        ranks=dict(gang.rendezvous.ranks),
        master_host=gang.rendezvous.host,
        master_port=gang.rendezvous.port,
        resume=gang.rendezvous.resume,
    )


def _without_workers(gang: Gang, action: Action, reason: str) -> Directive:
    """Return a directive without a rendezvous; its ranks name the nodes that upload what was saved in the last one."""
    return Directive(generation=gang.generation, action=action, reason=reason, ranks=dict(uploading(gang)))
