"""Google Cloud Storage in memory: as a file system of fsspec, on which epath and musiclm_jax work, and over HTTP, for TensorStore and gcsfs.

As the real one: no folders, an object is there once its upload is complete, each write has another generation, a bucket may be missing or forbidden.
"""

import base64
import contextlib
import hashlib
import http.server
import io
import itertools
import json
import re
import threading
import urllib.parse

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile


class Killed(BaseException):
    """What a kill is to the code of this process: nothing catches it."""


class Store:
    """The objects of all buckets: {"bucket/name": (data, generation)}."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """One bucket, `bucket`, that is empty."""
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.buckets, self.forbidden = {"bucket"}, set()
        self.generations = itertools.count(1)
        # What happened, such as "write bucket/name". A test may set `before`, called with each entry before it happens.
        self.log: list[str] = []
        self.before = lambda entry: None

    def _record(self, verb: str, path: str) -> None:
        bucket = path.split("/")[0]
        if bucket in self.forbidden:
            raise OSError(f"Forbidden: b/{path}\nmusic@example.com does not have storage.objects.create access.")
        if bucket not in self.buckets:
            raise FileNotFoundError(path)
        self.before(f"{verb} {path}")
        self.log.append(f"{verb} {path}")

    def write(self, path: str, data: bytes) -> int:
        self._record("write", path)
        self.objects[path] = bytes(data), next(self.generations)
        return self.objects[path][1]

    def read(self, path: str) -> bytes:
        self._record("read", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][0]

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        self._record("range", path)
        return self.objects[path][0][start:stop]

    def delete(self, path: str) -> None:
        self._record("delete", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        del self.objects[path]

    def look(self, path: str) -> dict:
        self._record("look", path)
        return self.info(path)

    def info(self, path: str) -> dict:
        data, generation = self.objects[path]
        return {"name": path, "type": "file", "size": len(data), "generation": str(generation), "mtime": float(generation)}

    def below(self, folder: str) -> list[str]:
        self._record("list", folder)
        return sorted(path for path in self.objects if path.startswith(f"{folder}/"))

    def folder(self, path: str) -> dict[str, bytes]:
        """{name: data} of the objects below "gs://bucket/folder"."""
        root = path.partition("://")[2]
        return {name.removeprefix(f"{root}/"): data for name, (data, _) in sorted(self.objects.items()) if name.startswith(f"{root}/")}


STORE = Store()


class FakeFileSystem(AbstractFileSystem):
    """The part of gcsfs and s3fs that epath and musiclm_jax use."""

    protocol = ("gs", "gcs", "s3")
    cachable = False

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        if path in STORE.objects:
            return STORE.look(path)
        if STORE.below(path) or path in STORE.buckets:
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **kwargs):
        path, found = self._strip_protocol(path), {}
        for name in STORE.below(path):
            child = f"{path}/{name.removeprefix(f'{path}/').split('/')[0]}"
            found[child] = STORE.info(child) if child in STORE.objects else {"name": child, "type": "directory", "size": 0}
        if not found and path not in STORE.buckets:
            if path not in STORE.objects:
                raise FileNotFoundError(path)
            found[path] = STORE.info(path)
        return list(found.values()) if detail else list(found)

    def cat_file(self, path, start=None, end=None, **kwargs):
        path = self._strip_protocol(path)
        return STORE.read(path) if start is None and end is None else STORE.read_range(path, start or 0, end)

    def _open(self, path, mode="rb", cache_type=None, **kwargs):
        if cache_type:
            return _Blocks(self, path, mode, cache_type=cache_type, **kwargs)
        return io.BytesIO(STORE.read(path)) if mode == "rb" else _Upload(path)

    def pipe_file(self, path, value, **kwargs):
        STORE.write(self._strip_protocol(path), value)

    def put_file(self, lpath, rpath, **kwargs):
        with open(lpath, "rb") as file:
            STORE.write(self._strip_protocol(rpath), file.read())

    def cp_file(self, path1, path2, **kwargs):
        STORE.write(self._strip_protocol(path2), STORE.read(self._strip_protocol(path1)))

    def _rm(self, path):
        STORE.delete(self._strip_protocol(path))

    def mkdir(self, path, create_parents=True, **kwargs):
        """Nothing: folders are parts of names."""

    def makedirs(self, path, exist_ok=False):
        """Nothing."""


class _Blocks(AbstractBufferedFile):
    """An object that is read by requests for ranges."""

    def _fetch_range(self, start, end):
        return STORE.read_range(self.path, start, end)


class _Upload(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            STORE.write(self._path, self.getvalue())
        super().close()


# ---------------------------------------------------------------------------------------------------------------------- HTTP


class _Handler(http.server.BaseHTTPRequestHandler):
    """The JSON API, as far as TensorStore and gcsfs use it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Not on the console."""

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def do_PUT(self):
        self._answer(self._post)

    def do_DELETE(self):
        self._answer(lambda: STORE.delete(self._path) or (204, b"", {}))

    def _answer(self, method):
        url = urllib.parse.urlsplit(self.path)
        self._query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = re.match(r"^(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", url.path)
        self._bucket, name = (place[1], urllib.parse.unquote(place[2] or self._query.get("name", ""))) if place else ("", "")
        self._path = f"{self._bucket}/{name}"
        try:
            status, body, headers = method()
        except FileNotFoundError:
            status, body, headers = 404, b"{}", {}
        except OSError as error:
            status, body, headers = 403, json.dumps({"error": {"message": str(error)}}).encode(), {}
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self):
        if self._path.endswith("/"):
            return self._list() if "/o" in self.path.split("?")[0].partition("/b/")[2] else self._bucket_info()
        if self._query.get("alt") != "media" and self._path in STORE.objects:
            STORE.look(self._path)
            return 200, json.dumps(self._resource(self._path)).encode(), {}
        data = STORE.read(self._path)
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": str(STORE.objects[self._path][1]), "x-goog-hash": ""}
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
            return 206, data[first:end], {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
        return 200, data, headers

    def _bucket_info(self):
        STORE.below(self._bucket)
        return 200, json.dumps({"name": self._bucket}).encode(), {}

    def _list(self):
        prefix, cut = self._query.get("prefix", ""), self._query.get("delimiter")
        names = [path.removeprefix(f"{self._bucket}/") for path in STORE.below(self._bucket)]
        names = [name for name in names if name.startswith(prefix) and self._query.get("startOffset", "") <= name < (self._query.get("endOffset") or "\x7f")]
        folders = {prefix + name.removeprefix(prefix).split(cut)[0] + cut for name in names if cut and cut in name.removeprefix(prefix)}
        items = [self._resource(f"{self._bucket}/{name}") for name in names if not (cut and cut in name.removeprefix(prefix))]
        return 200, json.dumps({"items": items, "prefixes": sorted(folders)}).encode(), {}

    def _post(self):
        kind = self._query.get("uploadType")
        if "/rewriteTo/" in self._path or "/copyTo/" in self._path:
            source, target = re.split(r"/(?:rewriteTo|copyTo)/b/", self._path)
            STORE.write(target.replace("/o/", "/", 1), STORE.read(source))
            return 200, json.dumps({"done": True, "resource": self._resource(target.replace("/o/", "/", 1))}).encode(), {}
        if kind == "resumable" and "upload_id" not in self._query:
            name = json.loads(self._body)["name"] if self._body.strip() else self._query["name"]
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{self._bucket}/o?uploadType=resumable&upload_id=1&name={urllib.parse.quote(name)}"
            return 200, b"{}", {"Location": where}
        data = self._body
        if kind == "multipart":
            mark = b"--" + re.search(r"boundary=[\"']*([^\"';]+)", self.headers["Content-Type"])[1].encode()
            _, described, content, _ = data.split(mark)
            self._path = f"{self._bucket}/{json.loads(described.partition(b'{')[1] + described.partition(b'{')[2])['name']}"
            data = content.partition(b"\n\n" if b"\r\n\r\n" not in content else b"\r\n\r\n")[2].removesuffix(b"\n").removesuffix(b"\r")
        STORE.write(self._path, data)
        return 200, json.dumps(self._resource(self._path)).encode(), {}

    def _resource(self, path):
        data, generation = STORE.objects[path]
        bucket, _, name = path.partition("/")
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        stamp = dict.fromkeys(("updated", "timeCreated"), "2026-01-01T00:00:00.000Z")
        return {"name": name, "bucket": bucket, "size": str(len(data)), "generation": str(generation), "md5Hash": digest, **stamp}


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Not on the console: gcsfs hangs up on answers that it no longer needs."""


@contextlib.contextmanager
def serving():
    """Serves STORE, with nothing in it. Yields the URL."""
    STORE.reset()
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
