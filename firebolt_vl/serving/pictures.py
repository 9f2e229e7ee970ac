"""Images of requests: the bytes behind their addresses, where these may be looked at."""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ..model.images import ImageError, bytes_of_data_url
from .refusal import Refused, bad_request

FETCH_SECONDS = 20
CHUNK = 2**16


class Sources(NamedTuple):
    """Places that images may come from, beside `data:` URLs.

    folder        whose files may be named, by a path in it or a `file:` URL; None: no files
    hosts         that images are fetched from by http(s)
    most_bytes    of one image
    """

    folder: Path | None = None
    hosts: tuple[str, ...] = ()
    most_bytes: int = 2**25

    def read(self, address: str, where: str) -> bytes:
        """Return the bytes of an image. Raises Refused."""
        scheme = address[:8].lower()
        if scheme.startswith("data:"):
            try:
                return bytes_of_data_url(address)
            except ImageError as error:
                raise bad_request(f"{where}: {error}", where, "invalid_image") from None
        if scheme.startswith(("http://", "https://")):
            return self._fetched(address, where)
        return self._file(address, where)

    def _file(self, address: str, where: str) -> bytes:
        if self.folder is None:
            raise bad_request(
                f"{where} is {_short(address)}; expected a data: URL, since this server reads no files (--image-folder "
                "lets it)",
                where,
                "image_not_allowed",
            )
        path = unquote(urlsplit(address).path) if address[:5].lower() == "file:" else address
        # The same words for what is not there and for what lies outside: whether it exists is nobody's business.
        missing = bad_request(
            f"{where} is {_short(address)}, which is no file in the folder of images of this server",
            where,
            "image_not_found",
        )
        try:
            file = (self.folder / path).resolve()
            if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
                raise missing
            if file.stat().st_size > self.most_bytes:
                raise self._too_large(address, where)
            return file.read_bytes()
        except (OSError, ValueError):  # not to be read, a name with a NUL in it
            raise missing from None

    def _fetched(self, address: str, where: str) -> bytes:
        # The client that huggingface_hub has: no other one is installed.
        from huggingface_hub.utils import httpx

        try:
            host = urlsplit(address).hostname
        except ValueError:
            host = None
        if host not in self.hosts:
            raise bad_request(
                f"{where} is {_short(address)}; expected a data: URL, since this server fetches nothing from "
                f"{host or 'there'} (--image-host lets it)",
                where,
                "image_not_allowed",
            )
        try:
            # A redirection could lead to another host, and is not followed.
            with httpx.stream("GET", address, timeout=FETCH_SECONDS, follow_redirects=False) as response:
                if response.status_code != 200:
                    raise bad_request(
                        f"{where}: {_short(address)} gives status {response.status_code}; expected 200",
                        where,
                        "image_not_found",
                    )
                data = bytearray()
                for chunk in response.iter_bytes(CHUNK):
                    data += chunk
                    if len(data) > self.most_bytes:
                        raise self._too_large(address, where)
                return bytes(data)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise bad_request(
                f"{where}: {_short(address)} could not be fetched ({error})", where, "image_not_found"
            ) from None

    def _too_large(self, address: str, where: str) -> Refused:
        return Refused(
            413, f"{where}: {_short(address)} is larger than {self.most_bytes:,} bytes", "image_too_large", where
        )


def _short(address: str) -> str:
    return address if len(address) <= 80 else f"{address[:77]}..."
