"""Load on a running server: clients that each send an image and wait for the answer, again and again.

python load_test.py photo.jpg --url http://localhost:8000 --clients 1 2 4 --seconds 10 --json figures.json
"""

import argparse
import json
import os
import statistics
import threading
import time
import urllib.request
from pathlib import Path


def one_client(url, image, until, times, errors):
    """Send requests until a moment; keep their seconds."""
    while time.perf_counter() < until:
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", data=image), timeout=60) as answer:
                json.load(answer)
            times.append(time.perf_counter() - start)
        except OSError as error:
            errors.append(str(error))


def load(url, image, clients, seconds):
    """Figures of so many clients at the same time."""
    times, errors = [], []
    start = time.perf_counter()
    arguments = (url, image, start + seconds, times, errors)
    threads = [threading.Thread(target=one_client, args=arguments) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    if not times:
        raise SystemExit(f"no request was answered: {errors[0] if errors else 'no time'}")
    return {
        "clients": clients,
        "requests": len(times),
        "errors": len(errors),
        "requests_per_second": round(len(times) / spent, 2),
        "median_ms": round(1e3 * statistics.median(times), 1),
        "p95_ms": round(1e3 * sorted(times)[int(0.95 * (len(times) - 1))], 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    image = options.image.read_bytes()
    load(options.url, image, 1, 0.5)  # the first calls are slower
    rows = []
    for clients in options.clients:
        rows.append(load(options.url, image, clients, options.seconds))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    if options.json:
        with urllib.request.urlopen(f"{options.url}/health", timeout=60) as answer:
            found = {"server": json.load(answer), "cores": os.cpu_count(), "seconds": options.seconds, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
