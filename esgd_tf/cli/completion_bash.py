"""Completion in bash: a script of functions, and the table of commands and flags in it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from esgd_tf.cli.completion_table import Command, Completed
from esgd_tf.cli.suggestions import dashed

__all__ = ["script"]

# `-o default` completes files where the functions leave COMPREPLY empty. bash treats `=` as a
# word of its own. Of Python only `-m esgd_tf` and this repository's train.py are completed here;
# the completion of Python that was there before handles the rest.
_SCRIPT = r"""# Completion of esgd-tf in bash, made by: python3 -m esgd_tf completion bash

# The flags of a command.
_esgd_tf_flags() {
    case $1 in
@FLAGS@
    esac
}

# What the value of a command's flag may be: words, or "files". Fails for a flag without a value.
_esgd_tf_values() {
    case $1:$2 in
@VALUES@
        *) return 1 ;;
    esac
}

# Complete COMMAND, whose words begin at INDEX; without COMMAND the first of them is the command.
_esgd_tf_complete() {
    local command=$1 at=$2 cur=${COMP_WORDS[COMP_CWORD]} prefix='' flag='' values='' words='' i
    COMPREPLY=()
    if [[ -z $command ]]; then
        if ((COMP_CWORD == at)); then
            COMPREPLY=($(compgen -W @COMMANDS@ -- "$cur"))
            return
        fi
        command=${COMP_WORDS[at]}
        at=$((at + 1))
    fi
    if [[ $command == launch ]]; then
        for ((i = at; i < COMP_CWORD; i++)); do
            if [[ ${COMP_WORDS[i]} == -- ]]; then
                if ((i + 1 < COMP_CWORD)) && _esgd_tf_is_train "${COMP_WORDS[i + 1]}"; then
                    _esgd_tf_complete train $((i + 2))
                fi
                return
            fi
        done
    elif [[ $command == walkers && ${COMP_WORDS[at]} == plot ]] && ((at < COMP_CWORD)); then
        command='walkers plot'
        at=$((at + 1))
    fi
    flag=${COMP_WORDS[COMP_CWORD - 1]}
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $flag == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $cur == -*=* ]]; then
        flag=${cur%%=*} prefix=${cur%%=*}= cur=${cur#*=}
    fi
    if [[ $flag == -* ]]; then
        flag=${flag#-}
        if values=$(_esgd_tf_values "$command" "${flag#-}"); then
            if [[ $values == files ]]; then
                return
            elif [[ -z $values ]]; then
                compopt +o default +o bashdefault 2>/dev/null
                return
            fi
            COMPREPLY=($(compgen -P "$prefix" -W "$values" -- "$cur"))
            return
        fi
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$(_esgd_tf_flags "$command")" -- "$cur"))
    elif ((COMP_CWORD == at)); then
        case $command in
@FIRST@
        esac
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}

# Whether a file is the train.py of this library, and no other one.
_esgd_tf_is_train() {
    [[ ${1##*/} == train.py ]] && grep -qsF esgd_tf.cli -- "${1/#\~/$HOME}"
}

_esgd_tf() {
    _esgd_tf_complete '' 1
}

_esgd_tf_train() {
    if _esgd_tf_is_train "${COMP_WORDS[0]}"; then
        _esgd_tf_complete train 1
    fi
}

_esgd_tf_python() {
    local i before=_esgd_tf_before_${COMP_WORDS[0]##*/}
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            -m)
                if [[ ${COMP_WORDS[i + 1]} == esgd_tf ]] && ((i + 1 < COMP_CWORD)); then
                    _esgd_tf_complete '' $((i + 2))
                    return
                fi
                break
                ;;
            -X | -W) i=$((i + 1)) ;;
            -*) ;;
            *)
                if _esgd_tf_is_train "${COMP_WORDS[i]}"; then
                    _esgd_tf_complete train $((i + 1))
                    return
                fi
                break
                ;;
        esac
    done
    if [[ -n ${!before} ]]; then
        "${!before}" "$@"
    fi
}

# Complete a Python, and remember what completed it before.
_esgd_tf_hook() {
    local before
    if declare -F _comp_load >/dev/null; then
        _comp_load "$1" >/dev/null 2>&1
    elif declare -F _completion_loader >/dev/null; then
        _completion_loader "$1" >/dev/null 2>&1
    fi
    before=$(complete -p "$1" 2>/dev/null)
    if [[ $before =~ -F\ ([^ ]+) && ${BASH_REMATCH[1]} != _esgd_tf_python ]]; then
        printf -v "_esgd_tf_before_$1" %s "${BASH_REMATCH[1]}"
    fi
    complete -o bashdefault -o default -F _esgd_tf_python "$1"
}

complete -o bashdefault -o default -F _esgd_tf esgd-tf
complete -o bashdefault -o default -F _esgd_tf_train train.py
_esgd_tf_hook python
_esgd_tf_hook python3"""


def script(commands: Sequence[Command]) -> str:
    """Return the script.

    Args:
        commands: sequence of Command. The commands to complete.
    """
    names = [command.name for command in commands if " " not in command.name]
    flags = [
        f"        {shlex.quote(command.name)}) echo {shlex.quote(' '.join(_typed(command)))} ;;"
        for command in commands
    ]
    values = [
        f"        {_patterns(command, flag)}) echo {shlex.quote(_value(flag))} ;;"
        for command in commands
        for flag in command.flags
        if not flag.is_switch
    ]
    first = [
        f"            {command.name}) words={shlex.quote(' '.join(command.words))} ;;"
        for command in commands
        if command.words
    ]
    filled = _SCRIPT
    for mark, text in (
        ("@FLAGS@", "\n".join(flags)),
        ("@VALUES@", "\n".join(values)),
        ("@FIRST@", "\n".join(first)),
        ("@COMMANDS@", shlex.quote(" ".join([*names, "--help", "--version"]))),
    ):
        filled = filled.replace(mark, text)
    return filled


def _typed(command: Command) -> list[str]:
    """Return the flags of a command as they are typed."""
    typed = []
    for flag in command.flags:
        typed += [f"--{flag.names[0]}", *map(dashed, flag.names[1:])]
        if flag.is_on:
            typed.append(f"--no{flag.names[0]}")
    return typed


def _patterns(command: Command, flag: Completed) -> str:
    return "|".join(shlex.quote(f"{command.name}:{name}") for name in flag.names)


def _value(flag: Completed) -> str:
    # Words cannot be listed together with paths, since the names of files may have spaces.
    return " ".join(flag.words) if flag.words else "files" if flag.is_path else ""
