"""The places of code in a text, so that questions about prose leave it out.

Fenced blocks and `inline code` are marked. Other code is recognised by its lines: a block is code if two fifths of
its lines look like a statement, a tag of a page's frame, a query, a line of JSON or of a configuration file.
"""

import re
from collections.abc import Iterator

BLOCK_CHARACTERS = 2000  # looked at on each side of a place
CODE_LINES = 0.4  # of a block
SETTINGS = 3  # lines of `key: value` in a row that make a configuration file

_STATEMENT = re.compile(
    r"""\s*(?:
    (?:(?:export|public|private|protected|static|async|abstract|final|pub|inline)\s+)*
      (?:def|class|fn|func|function|interface|struct|enum|module|trait|impl)\s+\w+\s*(?:[(:{<]|extends|implements|$)
    | (?:import\s+[\w.{}*, ]+|from\s+[\w.]+\s+import\s.+|\#include\s*[<"].+|using\s+[\w.:]+;|package\s+[\w.]+;?
      |require\s*\(.+|use\s+[\w:]+;)\s*$
    | (?:const|let|var|final|auto|int|float|double|char|bool|string|val)\s+\w+(?:\s*[:=;\[]).*
    | [\w.\[\]"'$*>-]+\s*(?:[-+*/%|&]|:|\?\?)?=\s*\S.*
    | [\w.$]+\([^()]*\)\s*[;{]?\s*$
    | (?:if|for|while|switch|catch|elif|except|with|foreach)\b.*(?:\)\s*\{?|\{|\]\s*:|\)\s*:|\w:)\s*$
    | (?:else|try|finally|do|begin|end|loop|default)\s*[:{]\s*$
    | .*[)\]}"'\w]\s*;\s*(?://.*)?$(?<=[)\]}"'\d];)
    | .*(?<![{}])[{}]\s*,?\s*$
    | [)\]}]+[;,]?\s*$
    | (?:return|yield|await|throw|raise|break|continue|pass)(?:\s+[^\s]+)?\s*;?\s*$
    | (?://|/\*|\*/|<!--|\#!).*
    | \#\s?(?:TODO|FIXME)\b.*
    | @\w+(?:\(.*\))?\s*$
    | </?(?i:!doctype|html|head|body|header|footer|main|div|section|nav|form|input|button|select|script|style|table
       |thead|tbody|tr|td|th|ul|ol|link|meta|svg|path|template|img|textarea|label|\?xml|\?php)\b.*
    | \{[%\#{].*[%\#}]\}\s*$
    | [\[{]\s*["'{\[].*
    | "[\w .-]+"\s*:\s*.+
    | (?:SELECT|INSERT\ INTO|UPDATE|DELETE\ FROM|CREATE|ALTER|DROP|FROM|WHERE
      |(?:LEFT\ |INNER\ )?JOIN|GROUP\ BY|ORDER\ BY)\s.*
    | (?:\$|>>>|\.\.\.|PS>)\s+\S.*
    | (?:sudo|git|pip|npm|yarn|docker|kubectl|helm|curl|apt|apt-get|brew|cd|ls|mkdir|echo|export
      |cp|rm|chmod)\s+[-\w./$"'{=].*
    | [\w.-]+(?:\s+--?[\w-]+(?:[= ]\S+)?)+\s*$
    | \\(?:begin|end|section|item|documentclass|usepackage|newcommand)\b.*
    )""",
    re.VERBOSE,
)
_PROSE = re.compile(r"[^\W\d_]{2,}(?:,? [^\W\d_]{2,}){6}")  # seven plain words in a row: a shell command has no such
_SETTING = re.compile(r"\s*(?:- )?[\"']?[\w./-]+[\"']?:(?:\s+\S.*)?\s*$")
_INDENTED = re.compile(r"(?: {2,}|\t)\S")
_FENCES = re.compile(r"(?:^|\n)[ \t]*(```|~~~).*?(?:\n[ \t]*\1[`~]*(?=\s|$)|\Z)", re.DOTALL)
_INLINE = re.compile(r"`[^`\n]+`")


def is_code(raw: bytes, at: int) -> bool:
    """Return whether a place in a text lies in code.

    Args:
        raw: the text in UTF-8.
        at: the place, in bytes.
    """
    for fence in (b"```", b"~~~"):
        if raw.count(fence, 0, at) % 2:
            return True
    line = raw.rfind(b"\n", 0, at) + 1
    if raw.count(b"`", line, at) % 2 and raw.find(b"`", at) >= 0:
        return True
    start = max(0, at - BLOCK_CHARACTERS)
    before = raw[start:at].decode("utf-8", "ignore")
    behind = raw[at : at + BLOCK_CHARACTERS].decode("utf-8", "ignore")
    block = before[before.rfind("\n\n") + 1 :] + behind.partition("\n\n")[0]
    return looks_like_code(block)


def looks_like_code(block: str) -> bool:
    """Return whether most of some lines are code."""
    lines = [line for line in block.split("\n") if line.strip()]
    if not lines:
        return False
    statements = sum(bool(_STATEMENT.match(line)) and not _PROSE.search(line) for line in lines)
    if statements and statements >= CODE_LINES * len(lines):
        return True
    settings = sum(bool(_SETTING.match(line)) and not _PROSE.search(line) for line in lines)
    return settings >= SETTINGS and settings >= 0.6 * len(lines) and any(map(_INDENTED.match, lines))


def prose(text: str) -> str:
    """Return a text without its code."""
    if "```" in text or "~~~" in text:
        text = _FENCES.sub("\n\n", text)
    if "`" in text:
        text = _INLINE.sub(" ", text)
    if not _signs_of_code(text):
        return text
    return "\n\n".join(block for block in _blocks(text) if not looks_like_code(block))


def _signs_of_code(text: str) -> bool:
    """Return cheaply whether a text may be code: code has one of these signs."""
    return any(sign in text for sign in ("{", "(", "=", ";", "<", "$ ", '":', "\n  ", "\n\t", "--"))


def _blocks(text: str) -> Iterator[str]:
    yield from (block for block in text.split("\n\n") if block.strip())
