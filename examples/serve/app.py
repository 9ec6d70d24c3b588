"""Objects in images over HTTP, from an exported model, without torch.

    pip install 'detrkit-runtime[onnx]' fastapi uvicorn        # or detrkit and its extra "export"
    DETRKIT_MODEL=model.onnx uvicorn app:app --host 0.0.0.0
    curl --data-binary @photo.jpg 'localhost:8000/predict?threshold=0.5'

``DETRKIT_THREADS``: threads of one prediction (default: one per core); ``DETRKIT_MAX_BYTES``: of the largest image.
"""

import os
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool

from detrkit.errors import DataError
from detrkit.runtime import LightPredictor

MOST_BYTES = int(os.environ.get("DETRKIT_MAX_BYTES", 20_000_000))


@asynccontextmanager
async def model_loaded(app):
    """Load the model before the first request: a wrong file ends the server at once, with one line."""
    threads = os.environ.get("DETRKIT_THREADS")
    app.state.predictor = LightPredictor(os.environ["DETRKIT_MODEL"], threads=int(threads) if threads else None)
    yield


app = FastAPI(title="detrkit", lifespan=model_loaded)


@app.get("/health")
def health():
    """Whether the model is loaded, and which it is."""
    info = app.state.predictor.info
    return {"model": info.name, "precision": info.precision, "classes": [one.name for one in info.categories or ()]}


@app.post("/predict")
async def predict(request: Request, threshold: float | None = Query(None, ge=0, le=1)):
    """Objects in the image that is the body (JPEG, PNG, …): best first, boxes in pixels of the upright image."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"an image has at most {MOST_BYTES} bytes here")
    start = time.perf_counter()
    try:
        found = await run_in_threadpool(app.state.predictor.predict, bytes(content), threshold)
    except DataError as error:
        raise HTTPException(400, str(error)) from error
    height, width = found.image_size
    return {
        "width": width,
        "height": height,
        "milliseconds": round(1e3 * (time.perf_counter() - start), 1),
        "objects": [
            {"name": name, "category_id": int(number), "score": float(score), "box": [float(side) for side in box]}
            for name, number, score, box in zip(found.names, found.category_ids, found.scores, found.boxes, strict=True)
        ],
    }
