"""MLflow: a reader of a run's records. The only part, with the jobs, that knows MLflow.

Trouble when the run starts is an error, before anything has been trained. Trouble later is not: what could
not be delivered is kept and tried again after each round, the caller is told once per cause, and training
continues.

MLflow itself is imported when a run starts: that takes more than a second, which ``--help`` need not wait.
"""
