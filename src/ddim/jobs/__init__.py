"""Many pictures, by rows of a table: read, drawn and written so that no row is lost and none is drawn for nothing.

prompts      tables of prompts, read a row at a time
starts       pictures that rows start from
rows         a row: its name, its seed, what it asks for
spool        all rows in the form that workers read
output       what a thousand rows become: a folder, a Parquet file, a tar file
job          the folder of a job: what is asked, what is done
lock         who may draw into a folder
hardware     how a worker computes
worker       what draws rows in one process
local        a job in one process; cluster, on Ray

It needs the extra "serve", by whose rules rows are checked; `ddim generate` is its command.
"""

from ddim.jobs.job import Job, open_job

__all__ = ["Job", "open_job"]
