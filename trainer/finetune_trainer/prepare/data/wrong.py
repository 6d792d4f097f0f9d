"""How a row that breaks a rule leaves the functions that read it."""

from finetune_trainer.prepare.data.formats import Code


class Wrong(Exception):  # noqa: N818 - control flow within this package; it becomes a Fault
    """A row breaks a rule.

    Args:
        code: which one.
        message: the sentence of the fault.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
