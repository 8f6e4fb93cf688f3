"""How models are served."""

import hmac
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from glocal.errors import GlocalError, check_range


@dataclass(frozen=True)
class ServeConfig:
    """Address, batches and limits of a server. Numbers out of range raise GlocalError."""

    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 is reached from other machines."""
    port: int = 8000
    """The port to listen at; 0 takes a free one."""
    token: str | None = field(default=None, repr=False)
    """What requests must give as `Authorization: Bearer TOKEN`; without one, everybody may ask."""
    max_batch: int = 32
    """Inputs that are computed together."""
    max_wait: float | int = 5
    """Milliseconds that a request waits for others under load; an idle model begins at once."""
    slots: int = 8
    """Texts that a causal model generates side by side in `/v1/completions`."""
    max_queue: int = 256
    """Requests that wait for one model; a further one gets status 503 and Retry-After."""
    max_body: int = 2**24
    """Bytes of a request's body."""
    max_text: int = 2**15
    """Characters of an input."""
    max_pixels: int = 2**25
    """Height times width of an image, before it is scaled to the model's size."""
    max_inputs: int = 128
    """Inputs of a request; texts of a completion."""
    max_tokens: int = 1024
    """What a request may ask for as `extra_length` or `max_tokens`."""
    max_beams: int = 16
    """Beams, or samples, of an input."""
    timeout: float | int = 60
    """Seconds that a request may take."""

    def __post_init__(self) -> None:
        check_range("port", self.port, least=0, most=65535)
        check_range("max_wait", self.max_wait, least=0)
        check_range("timeout", self.timeout, above=0)
        for name in ("max_batch", "slots", "max_queue", "max_body", "max_text", "max_pixels", "max_inputs"):
            check_range(name, getattr(self, name), least=1)
        for name in ("max_tokens", "max_beams"):
            check_range(name, getattr(self, name), least=1)

    def allows(self, authorization: bytes) -> bool:
        """Whether a request with this header may be answered; the time taken does not tell how much of it is right."""
        return self.token is None or hmac.compare_digest(authorization, f"Bearer {self.token}".encode())


def check_packages() -> None:
    """Raise GlocalError if a package of the extra `serve` is missing."""
    packages = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
    if missing := [name for name in packages if find_spec(name) is None]:
        raise GlocalError(f"serving needs {', '.join(missing)}; pip install 'glocal[serve]'")


def read_token(file: Path) -> str:
    """Return the token that a file holds. Raises GlocalError if it cannot be read, or holds no single word."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GlocalError(f"--token-file {file} cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(token.split()) != 1 or not token.isascii():
        raise GlocalError(f"--token-file {file} holds no token; expected one word of ASCII letters, digits and signs")
    return token
