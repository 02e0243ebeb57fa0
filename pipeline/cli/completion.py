"""Completion in bash, which takes `infer=echo` for three words, and in zsh, without a space after `KEY=`."""

from __future__ import annotations

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)


class OverrideBashComplete(BashComplete):
    """Puts the words of an override together again, and adds no space after `KEY=`.

    bash replaces what stands after the last `=` only, so that is all it is given.
    """

    source_template = BashComplete.source_template.replace(
        "    return 0\n",
        "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null\n    return 0\n",
        1,
    )
    _done = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one to complete, and that one."""
        current = int(os.environ["COMP_CWORD"])
        words = split_arg_string(os.environ["COMP_WORDS"])
        if current >= len(words):
            words = [*words[:current], ""]
        args: list[str] = []
        split = False
        for word in words[1 : current + 1]:
            if args and word and (word == "=" or split):
                args[-1] += word
            else:
                args.append(word)
            split = word == "="
        incomplete = args.pop() if args else ""
        if words[current] != incomplete:
            self._done = incomplete[: incomplete.rfind("=") + 1]
        return args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """A line that the function in the shell reads."""
        return f"{item.type},{str(item.value).removeprefix(self._done)}"


class OverrideZshComplete(ZshComplete):
    """Adds no space after `KEY=`."""

    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "local -a keys=(${(M)completions:#*=}) whole=(${completions:#*=})\n"
        "        compadd -U -V unsorted -S '' -a keys\n"
        "        compadd -U -V unsorted -a whole",
    )


add_completion_class(OverrideZshComplete, "zsh")
add_completion_class(OverrideBashComplete, "bash")
