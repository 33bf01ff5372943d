"""Python in processes that are forked from one which has imported the driver's libraries already.

    python tests/e2e/fork_server.py serve SOCKET     until its standard input ends
    python tests/e2e/fork_server.py run SOCKET MODULE ARGUMENT ...

`run` is to everybody else what `python -m MODULE ARGUMENT ...` would be: it has its folder, its
environment and its output, ends with its exit code, and ends it when it is killed. What is saved is
a third of the CPU time in which a driver starts. Ray, engines and ranks below it are started as
ever; whoever looks at the driver's own process (its signals, its environment) takes the real one.
"""

from __future__ import annotations

import array
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
from typing import Any

_STANDARD = 3  # file descriptors: input, output, errors


def serve(path: str) -> dict[str, Any] | None:
    """Fork for each request; returns the request in the process that has to answer it, None in the
    server, at the end of its standard input."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

    import herl_megatron.commands.dpo
    import herl_megatron.commands.evaluate
    import herl_megatron.commands.improve
    import herl_megatron.commands.sft
    import herl_megatron.commands.train
    import herl_megatron.rubrics.pool

    assert herl_megatron and transformers and AutoConfig
    assert AutoTokenizer and PreTrainedTokenizerFast and Qwen2Config
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_input, args=(path,), daemon=True).start()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _watch(connection)
        connection.close()


def _end_with_input(path: str) -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be forked as held
        pass
    os.unlink(path)
    os._exit(0)


def _watch(connection: socket.socket) -> dict[str, Any]:
    """Fork once more: this process tells of the child's end, and ends it when nobody listens."""
    text, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(_STANDARD * 4))
    files = array.array("i")
    files.frombytes(ancillary[0][2])
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        request: dict[str, Any] = json.loads(text)
        return request
    for file in files:
        os.close(file)

    def kill_when_unheard() -> None:
        connection.recv(1)
        os.kill(child, signal.SIGKILL)

    threading.Thread(target=kill_when_unheard, daemon=True).start()
    _, status = os.waitpid(child, 0)
    connection.send(os.waitstatus_to_exitcode(status).to_bytes(2, "big", signed=True))
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """`python -m MODULE ARGUMENT ...` in the folder and environment of who asked."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["folder"]
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _run(path: str, module: str, arguments: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    request = {
        "module": module,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    files = array.array("i", range(_STANDARD))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
    connection.sendmsg([json.dumps(request).encode()], rights)
    if len(said := connection.recv(2)) != 2:
        sys.exit("the fork server ended")
    code = int.from_bytes(said, "big", signed=True)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(_run(sys.argv[2], sys.argv[3], sys.argv[4:]))
    if (asked := serve(sys.argv[2])) is not None:
        _become(asked)
