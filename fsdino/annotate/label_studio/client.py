"""The few calls of Label Studio's API that are needed, with either kind of its tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import httpx

PAGE = 100  # tasks asked for at once
SECONDS = 30.0


class Key(httpx.Auth):
    """Signs requests with a personal access token, which is changed for short-lived ones, or with a legacy token."""

    def __init__(self, url: str, api_key: str) -> None:
        self.refresh_url, self.api_key = f"{url}/api/token/refresh/", api_key
        self._access: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth.auth_flow`."""
        # Personal access tokens are JSON Web Tokens, three parts with dots between; legacy ones are plain digits.
        if self.api_key.count(".") != 2:
            request.headers["Authorization"] = f"Token {self.api_key}"
            yield request
            return
        if self._access is None:
            yield from self._refresh()
        request.headers["Authorization"] = f"Bearer {self._access}"
        response = yield request
        # They live for minutes, a project takes hours.
        if response.status_code == 401:
            yield from self._refresh()
            request.headers["Authorization"] = f"Bearer {self._access}"
            yield request

    def _refresh(self) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield httpx.Request("POST", self.refresh_url, json={"refresh": self.api_key})
        # Only here, and not by `requires_response_body`, which reads every answer whole, endless pictures as well.
        response.read()
        if response.status_code == 200:
            self._access = str(response.json().get("access"))


class Studio:
    """One Label Studio.

    Args:
        url: its address, as "http://localhost:8080".
        api_key: a personal access token or a legacy token of one of its users.
    """

    def __init__(self, url: str, api_key: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"'{url}' is no address of a Label Studio; give one like http://localhost:8080.")
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise ValueError(
                "Label Studio asks for a token: copy it from its page Account & Settings into the variable "
                "LABEL_STUDIO_API_KEY, or give --api-key."
            )
        self.url = url.rstrip("/")
        signs, agent = Key(self.url, api_key), {"User-Agent": "fsdino"}
        self.client = httpx.Client(base_url=self.url, auth=signs, timeout=SECONDS, headers=agent)

    def project(self, project: int) -> dict[str, Any]:
        """A project's settings, of which `label_config` and `title` are used."""
        found: dict[str, Any] = self._call("GET", f"/api/projects/{project}/", f"project {project}")
        return found

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """All tasks of a project with their annotations and predictions, page by page."""
        seen, total, page = 0, 1, 1
        while seen < total:
            query = {"project": project, "page": page, "page_size": PAGE, "fields": "all"}
            answer = self._call("GET", "/api/tasks/", f"the tasks of project {project}", params=query)
            total, page = int(answer["total"]), page + 1
            # A page without tasks: some were deleted meanwhile, and the total is an older one.
            if not answer["tasks"]:
                return
            seen += len(answer["tasks"])
            yield from answer["tasks"]

    def add_prediction(self, task: int, prediction: dict[str, Any]) -> None:
        """Add a prediction (`result`, `score`, `model_version`) to a task."""
        self._call("POST", "/api/predictions/", f"a prediction for task {task}", json={"task": task, **prediction})

    def delete_prediction(self, prediction: int) -> None:
        """Delete a prediction."""
        self._call("DELETE", f"/api/predictions/{prediction}/", f"prediction {prediction}")

    def _call(self, method: str, path: str, what: str, **options: Any) -> Any:
        try:
            response = self.client.request(method, path, **options)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            where = f"Label Studio at {self.url}"
            raise OSError(f"{where} cannot be reached ({reason}); start it, or give --url.") from error
        if response.status_code in (401, 403):
            raise OSError(
                f"Label Studio at {self.url} refuses the token ({response.status_code}); copy it again from Account & "
                "Settings."
            )
        if response.is_error:
            said = " ".join(response.text.split())[:200]
            raise OSError(f"Label Studio at {self.url} answers {response.status_code} for {what}: {said}")
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise OSError(f"what answers at {self.url} is no Label Studio: it sends no JSON for {what}.") from error
