"""Completion in zsh: a function for each command, whose flags are shown with their help."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from esgd_tf.cli.completion_table import Command, Completed
from esgd_tf.cli.suggestions import dashed

__all__ = ["script"]

# Of Python only `-m esgd_tf` and this repository's train.py are completed here; the rest goes to
# zsh's own completion of Python. `words` and CURRENT are cut until words[1] is the command.
_SCRIPT = r"""#compdef esgd-tf
# Completion of esgd-tf in zsh, made by: python3 -m esgd_tf completion zsh

@FUNCTIONS@

_esgd_tf_words_or_files() {
    compadd -- "$@"
    _files
}

# Whether a file is the train.py of this library, and no other one.
_esgd_tf_is_train() {
    [[ ${1:t} == train.py ]] && grep -qsF esgd_tf.cli -- ${~1}
}

_esgd_tf() {
    if (( CURRENT == 2 )); then
        local -a commands=(
@COMMANDS@
        )
        _describe -t commands command commands
        [[ $words[2] == -* ]] && compadd -- --help --version
        return
    fi
    shift words
    (( CURRENT -= 1 ))
    if [[ $words[1] == walkers && $words[2] == plot ]] && (( CURRENT > 2 )); then
        shift words
        (( CURRENT -= 1 ))
        _esgd_tf_walkers_plot
    elif [[ $words[1] == launch ]] && (( ${words[(i)--]} < CURRENT )); then
        local -i at=${words[(i)--]}
        shift at words
        (( CURRENT -= at ))
        if (( CURRENT == 1 )); then
            _files
        elif _esgd_tf_is_train $words[1]; then
            _esgd_tf_train
        fi
    elif (( $+functions[_esgd_tf_$words[1]] )); then
        _esgd_tf_$words[1]
    fi
}

_esgd_tf_script() {
    if _esgd_tf_is_train $words[1]; then
        _esgd_tf_train
    else
        _default
    fi
}

_esgd_tf_python() {
    local -i i
    for (( i = 2; i < CURRENT; i++ )); do
        case $words[i] in
            (-m)
                if [[ $words[i+1] == esgd_tf ]] && (( i + 1 < CURRENT )); then
                    shift i words
                    (( CURRENT -= i ))
                    _esgd_tf
                    return
                fi
                break
                ;;
            (-X|-W) (( i += 1 )) ;;
            (-*) ;;
            (*)
                if _esgd_tf_is_train $words[i]; then
                    shift i-1 words
                    (( CURRENT -= i - 1 ))
                    _esgd_tf_train
                    return
                fi
                break
                ;;
        esac
    done
    if (( $+functions[_python] )); then
        _python "$@"
    else
        _default
    fi
}

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _esgd_tf esgd-tf
compdef _esgd_tf_script train.py
compdef _esgd_tf_python python python3"""


def script(commands: Sequence[Command]) -> str:
    """Return the script.

    Args:
        commands: sequence of Command. The commands to complete.
    """
    lines = [
        "            " + shlex.quote(f"{command.name}:{command.summary}")
        for command in commands
        if " " not in command.name
    ]
    filled = _SCRIPT.replace("@FUNCTIONS@", "\n\n".join(map(_function, commands)))
    return filled.replace("@COMMANDS@", "\n".join(lines))


def _function(command: Command) -> str:
    specs = [spec for flag in command.flags for spec in _specs(flag)]
    if command.words:
        specs.append(f"1: :({' '.join(command.words)})")
    specs.append("*: :_files")
    body = " \\\n        ".join(map(shlex.quote, specs))
    return f"_esgd_tf_{command.name.replace(' ', '_')}() {{\n    _arguments \\\n        {body}\n}}"


def _specs(flag: Completed) -> list[str]:
    """Return the arguments of `_arguments` for a flag: one for each of its names."""
    help = re.sub(r"([\\\[\]:])", r"\\\1", flag.help)
    typed = [f"--{flag.names[0]}", *map(dashed, flag.names[1:])]
    if flag.is_switch:
        if flag.is_on:
            typed.append(f"--no{flag.names[0]}")
        return [f"({' '.join(typed)}){name}[{help}]" for name in typed]
    if flag.is_path and flag.words:
        value = f" _esgd_tf_words_or_files {' '.join(flag.words)}"
    elif flag.words:
        value = f"({' '.join(flag.words)})"
    else:
        value = "_files" if flag.is_path else " "
    once = f"({' '.join(typed)})"
    # The value of a long flag may follow an = too.
    return [
        f"{once}{name}{'=' if name.startswith('--') else ''}[{help}]:{flag.names[0]}:{value}"
        for name in typed
    ]
