"""A photo in, mask, gender and age group out as JSON: labelling over HTTP, with FastAPI.

    pip install '.[runtime]' 'fastapi>=0.165' python-multipart uvicorn
    MASKCLS_MODEL=onnx uvicorn --app-dir examples/serving fastapi_app:app
    curl -F picture=@photo.jpg localhost:8000/predict

`POST /predict` takes a form with one file, `picture`. A picture that cannot be read is answered
with 422 and the reason, a request that is too large with 413. `GET /health` answers once the
network is loaded. `/docs` describes both. There is no login and no encryption: put it behind a
server that has them.

    variable            default   what it is
    MASKCLS_MODEL       onnx      the ONNX file, or the folder of export/to_onnx.py
    MASKCLS_PROVIDER    auto      where to compute: auto, cpu, cuda or tensorrt
    MASKCLS_MAX_BYTES   10000000  the largest request that is taken
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request, UploadFile

from maskcls import load
from maskcls.errors import PictureError
from maskcls.runtime import Prediction
from maskcls.runtime.engines import usable_cores

MAX_BYTES = int(os.environ.get("MASKCLS_MAX_BYTES", "10_000_000"))


@asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[None]:
    """Loads the network before the first request, and frees it after the last."""
    # More pictures at once than cores would only wait for one another, each with its pixels in
    # memory, of which a small file may hold millions.
    current_default_thread_limiter().total_tokens = usable_cores()
    model = os.environ.get("MASKCLS_MODEL", "onnx")
    with load(model, provider=os.environ.get("MASKCLS_PROVIDER", "auto")) as classifier:
        app.state.classifier = classifier
        yield


app = FastAPI(title="maskcls", lifespan=loaded, max_body_size=MAX_BYTES)


@app.post("/predict", response_model_exclude={"error"})
def predict(picture: UploadFile, request: Request) -> Prediction:
    """What a photo of a face shows."""
    # Without `async`, FastAPI calls this in a thread of its own: a classifier takes many at once.
    try:
        answer: Prediction = request.app.state.classifier.predict(picture.file.read())
    except PictureError as error:
        raise HTTPException(422, str(error)) from None
    return answer


@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Answers where pictures can be labelled."""
    # With `async`, it waits for no picture: no thread is asked for.
    return {"status": "ok", "provider": request.app.state.classifier.provider}
