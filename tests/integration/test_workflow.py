import time
from worker.retrain import run_job
from worker.run import Context
from tests.integration import production as p

def test_probe(context: Context) -> None:
    a=time.time()
    p.send(context.sessions, p.unseen(60)); b=time.time()
    j=p.start_job(context)
    print(run_job(j, context)); c=time.time()
    print(b-a,c-b)
    cc = p.changed(context, window=400, iterations=5)
    p.send(context.sessions, p.unseen(60)); b=time.time()
    j=p.start_job(cc)
    print(run_job(j, cc)); c=time.time()
    print(c-b)
    job=p.job_of(context.sessions,j)
    print(job.log, job.rows, job.result)
