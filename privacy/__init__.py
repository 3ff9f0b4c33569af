"""Privacy and cryptography without torch and without a network: canonical transcripts."""

from __future__ import annotations

from privacy.transcript import TranscriptError, decode, digest, encode

__all__ = ["TranscriptError", "decode", "digest", "encode"]
