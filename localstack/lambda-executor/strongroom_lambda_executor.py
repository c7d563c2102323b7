"""Runs functions of LocalStack as plain processes, where there is no Docker.

An execution environment is a process running the zip's `bootstrap`, and a server that speaks the Lambda Runtime API
(https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html) to it. Everything else (event source mappings, retries,
dead letters, logs) is LocalStack's own. While there is a file that STRONGROOM_LAMBDA_KILLS names, with
{"share": 0.5, "most_ms": 200} in it, so large a share of the processes is killed while they handle an event, after a random
time. What each invocation took goes into its log's REPORT line, as on Lambda, and as a line
of JSON into the file that STRONGROOM_LAMBDA_REPORTS names.
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from localstack import config
from localstack.services.lambda_.invocation.lambda_models import InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor

# How long a process may take until it asks for its first event, seconds: what Lambda gives.
INIT_SECONDS = 10
LAST_LOG_LINES = 1000


class Plugin(RuntimeExecutorPlugin):
    name = "strongroom"

    def load(self, *args, **kwargs):
        return ProcessExecutor


class Answer:
    def __init__(self, body, failed):
        self.body, self.failed = body, failed


class ProcessExecutor(RuntimeExecutor):
    """One environment: one event at a time."""

    def __init__(self, id, function_version):
        super().__init__(id, function_version)
        # Guards everything below; notified whenever any of it changes.
        self.changed = threading.Condition()
        self.event, self.answer, self.asked, self.closed = None, None, False, False
        self.log_lines = []
        self.process = None
        # LocalStack asks for the address before it starts the environment.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def start(self, env_vars):
        self.folder = str(self.function_version.config.code.get_unzipped_code_location())
        given = {
            "PATH": os.environ["PATH"],
            **env_vars,
            "LAMBDA_TASK_ROOT": self.folder,
            "AWS_LAMBDA_RUNTIME_API": self.address,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{config.GATEWAY_LISTEN[0].port}",
        }
        self.environment = {name: str(value) for name, value in given.items() if value is not None}
        self._run()

    def _run(self):
        """Starts the process, and waits until it asks for an event."""
        self.asked = False
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [os.path.join(self.folder, "bootstrap")],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._read_log, args=(self.process,), daemon=True).start()
        deadline = time.monotonic() + INIT_SECONDS
        with self.changed:
            while not self.asked and self.process.poll() is None and time.monotonic() < deadline:
                self.changed.wait(0.05)
            if not self.asked:
                raise RuntimeError("the function does not start: " + "".join(self.log_lines[-20:]))
        # Reported with the first invocation only, as on Lambda.
        self.init_ms = (time.monotonic() - begun) * 1000

    def _read_log(self, process):
        for line in process.stdout:
            with self.changed:
                self.log_lines.append(line.decode(errors="replace"))
                del self.log_lines[:-LAST_LOG_LINES]

    def next_event(self):
        """Waits for an event, as the process's request for one does; None when there will be none."""
        with self.changed:
            self.asked = True
            self.changed.notify_all()
            while self.event is None and not self.closed:
                self.changed.wait()
            event, self.event = self.event, None
            return event

    def take_answer(self, request, body, failed):
        with self.changed:
            self.answer = (request, Answer(body, failed))
            self.changed.notify_all()

    def invoke(self, payload):
        request, seconds = payload["invoke-id"], self.function_version.config.timeout
        if self.process.poll() is not None:
            self._run()
        begun = time.monotonic()
        lives, killed = seconds_to_live(), False
        with self.changed:
            first_line = len(self.log_lines)
            self.answer, self.event = None, payload
            self.changed.notify_all()
            answer = None
            while answer is None:
                self.changed.wait(0.05 if lives is None else 0.002)
                if self.answer and self.answer[0] in (request, "init"):
                    answer = self.answer[1]
                elif self.process.poll() is not None:
                    answer = failure("Runtime.ExitError", f"the process ended with {self.process.returncode}")
                elif lives is not None and time.monotonic() - begun > lives:
                    self._kill()
                    killed = True
                elif time.monotonic() - begun > seconds:
                    answer = failure("Sandbox.Timedout", f"{request} Task timed out after {seconds:.2f} seconds")
            self.event = None
            lines = "".join(self.log_lines[min(first_line, len(self.log_lines)):])
        if b"Sandbox.Timedout" in answer.body and answer.failed:
            self._kill()
        took = (time.monotonic() - begun) * 1000
        memory = self.function_version.config.memory_size
        peak_mib = peak_memory_mib(self.process.pid)
        init_ms, self.init_ms = self.init_ms, None
        report(
            function=self.function_version.id.function_name,
            duration_ms=took,
            init_ms=init_ms,
            peak_mib=peak_mib,
            failed=answer.failed,
            killed=killed and answer.failed,
        )
        logs = (
            f"START RequestId: {request}\n{lines}END RequestId: {request}\n"
            f"REPORT RequestId: {request}\tDuration: {took:.2f} ms\tMemory Size: {memory} MB"
            f"\tMax Memory Used: {peak_mib or 0:.0f} MB"
            + (f"\tInit Duration: {init_ms:.2f} ms\n" if init_ms is not None else "\n")
        )
        return InvocationResult(request, answer.body, is_error=answer.failed, logs=logs)

    def _kill(self):
        if self.process and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(5)

    def stop(self):
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self._kill()
        self.server.shutdown()
        self.server.server_close()

    def get_logs(self):
        with self.changed:
            return "".join(self.log_lines)

    def get_address(self):
        return "127.0.0.1"

    def get_endpoint_from_executor(self):
        return "127.0.0.1"

    def get_runtime_endpoint(self):
        return f"http://{self.address}"

    @classmethod
    def prepare_version(cls, function_version):
        function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version):
        pass


def seconds_to_live():
    """How long the next invocation may live; None if it is not to be killed."""
    try:
        with open(os.environ.get("STRONGROOM_LAMBDA_KILLS", "")) as file:
            wanted = json.load(file)
    except (OSError, ValueError):
        return None
    return random.uniform(0, wanted["most_ms"]) / 1000 if random.random() < wanted["share"] else None


def peak_memory_mib(pid):
    """The most a process ever had in memory, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def report(**values):
    path = os.environ.get("STRONGROOM_LAMBDA_REPORTS")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(values) + "\n")


def failure(kind, message):
    return Answer(json.dumps({"errorType": kind, "errorMessage": message}).encode(), True)


def handler_of(executor):
    """The Runtime API of one environment."""

    class RuntimeApi(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            event = executor.next_event()
            if event is None:
                self.close_connection = True
                return
            deadline_ms = int((time.time() + executor.function_version.config.timeout) * 1000)
            self.answer(
                200,
                event["payload"].encode(),
                {
                    "Lambda-Runtime-Aws-Request-Id": event["invoke-id"],
                    "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
                    "Lambda-Runtime-Invoked-Function-Arn": event["invoked-function-arn"],
                    "Lambda-Runtime-Trace-Id": event.get("trace-id") or "",
                },
            )

        def do_POST(self):
            # …/runtime/invocation/REQUEST/response, …/REQUEST/error, …/runtime/init/error
            *_, request, what = self.path.split("/")
            executor.take_answer(request, self.body(), what == "error")
            self.answer(202, b"{}", {})

        def body(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return RuntimeApi
