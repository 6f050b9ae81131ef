"""The language and the truth that the services share: words, rules and the ledger.

What comes in: nothing by itself; importing any module here opens no connection and reads no environment.
What it never does: import a service, start a thread, or know which process it runs in.
"""
