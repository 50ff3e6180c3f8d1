"""The checks of `baton doctor` on the operator's machine. The router makes the others."""

from __future__ import annotations

import stat
import time

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.tls.hosts import is_loopback
from services.router.cli.client import control
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Common
from services.router.cli.views import View

MAX_SKEW_SECONDS = 2.0


def finding(level: str, subject: str, text: str, remedy: str = "") -> View:
    return {"level": level, "subject": subject, "text": text, "remedy": remedy}


def examine(options: Common) -> list[View]:
    """Raises CommandFailed for wrong usage only."""
    findings = [_token(options)]
    try:
        with control(options) as router:
            began = time.time()
            answer = router.call("Diagnose", pb.DiagnoseRequest())
            ended = time.time()
    except CommandFailed as error:
        if error.code is Exit.USAGE:
            raise
        remedy = "stores, log and control store cannot be checked until a router answers"
        return [*findings, finding("FAIL", "router", str(error), remedy)]
    findings.append(finding("PASS", "router", f"answers at {options.address}"))
    findings.append(_clock(answer.now_time.ToNanoseconds() / 1e9, began, ended))
    for found in answer.findings:
        level = pb.Finding.Level.Name(found.level).removeprefix("LEVEL_")
        findings.append(finding(level, found.subject, found.text, found.remedy))
    return findings


def _token(options: Common) -> View:
    subject = "token of this command"
    if options.token_file is None:
        if is_loopback(options.address):
            return finding("PASS", subject, "none, the router is on this machine")
        return finding("WARN", subject, "none, the router is on another machine", "name it with --token-file")
    try:
        mode = options.token_file.stat().st_mode
    except OSError as error:
        return finding("FAIL", subject, f"cannot be read: {error}", "name a file that exists with --token-file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        remedy = f"chmod 600 {options.token_file}"
        return finding("WARN", subject, f"{options.token_file} can be read by other users", remedy)
    return finding("PASS", subject, f"{options.token_file}, for its owner only")


def _clock(router: float, began: float, ended: float) -> View:
    """Compare the clocks. The router read its time between the begin and the end of the call."""
    skew = router - ended if router > ended else min(0.0, router - began)
    if abs(skew) <= MAX_SKEW_SECONDS:
        return finding("PASS", "clock of the router", f"within {MAX_SKEW_SECONDS:g} s of this machine's")
    where = "ahead of" if skew > 0 else "behind"
    remedy = "set the clocks by NTP; no write is at risk, but times in the journal are wrong"
    return finding("WARN", "clock of the router", f"{abs(skew):.1f} s {where} this machine's", remedy)
