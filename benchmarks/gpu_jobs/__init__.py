"""What benchmarks/gpu.py measures: jobs, most worth first, of cases in processes of their own."""

from __future__ import annotations

from gpu_jobs import epoch, families, health, learning, options, plain, ratio, two_processes

JOBS = {
    job.name: job
    for job in (
        *(health.JOB, ratio.JOB, epoch.JOB, plain.JOB),
        *(options.JOB, families.JOB, learning.JOB, two_processes.JOB),
    )
}
