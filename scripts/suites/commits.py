"""Counts in a database and keeps the count outside, to learn what a database has lost.

commits.py postgres SOCKET LOG run|check [CLIENTS]    until the server is gone
commits.py sqlite FILE LOG run|check [CLIENTS]        until the filesystem is gone

Each client inserts (client, 1), (client, 2), ... and appends a line to LOG once a commit returned.
`check` wants, of each client: every number up to its highest, and none of the log missing.
"""

import collections
import ctypes
import os
import sqlite3
import sys
import threading

CREATE = "CREATE TABLE IF NOT EXISTS counter (client integer, number integer, padding text)"
QUERY = "SELECT client, number FROM counter"


class Postgres:
    """As much of libpq as this needs."""

    def __init__(self, socket):
        self.lib = ctypes.CDLL("libpq.so.5")
        for name in ("PQconnectdb", "PQexec"):
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.PQgetvalue.restype = self.lib.PQerrorMessage.restype = ctypes.c_char_p
        self.connection = ctypes.c_void_p(self.lib.PQconnectdb(
            f"host={socket} user=postgres dbname=postgres".encode()))
        if self.lib.PQstatus(self.connection):
            self.fail()

    def fail(self):
        raise OSError(self.lib.PQerrorMessage(self.connection).decode().strip())

    def execute(self, statement):
        """Autocommit: a result means that the transaction has been committed."""
        result = ctypes.c_void_p(self.lib.PQexec(self.connection, statement.encode()))
        # PGRES_COMMAND_OK, PGRES_TUPLES_OK
        if self.lib.PQresultStatus(result) not in (1, 2):
            self.fail()
        rows = [tuple(int(self.lib.PQgetvalue(result, row, column)) for column in range(2))
                for row in range(self.lib.PQntuples(result))]
        self.lib.PQclear(result)
        return rows


class Sqlite:
    def __init__(self, file):
        self.connection = sqlite3.connect(file, timeout=60, isolation_level=None)
        self.connection.execute("PRAGMA synchronous=FULL")

    def execute(self, statement):
        return self.connection.execute(statement).fetchall()


def count(database, client, number, log):
    try:
        while True:
            number += 1
            padding = "x" * (number * 7919 % 500)
            database.execute(f"INSERT INTO counter VALUES ({client}, {number}, '{padding}')")
            os.write(log, b"%d %d\n" % (client, number))
    except (OSError, sqlite3.Error) as error:
        print(f"client {client} ends after {number - 1}: {str(error).splitlines()[0]}")


def check(rows, logged):
    stored = collections.defaultdict(list)
    for client, number in rows:
        stored[client].append(number)
    defects = []
    for client in sorted(logged | stored.keys()):
        numbers, last = sorted(stored[client]), logged.get(client, 0)
        highest = numbers[-1] if numbers else 0
        print(f"client {client}: committed {last}, found {highest}")
        if numbers != list(range(1, highest + 1)):
            defects.append(f"client {client}: {len(numbers)} rows, the highest is {highest}")
        # One insert was under way: it may have been committed without an answer.
        if not last <= highest <= last + 1:
            defects.append(f"client {client}: committed up to {last}, found up to {highest}")
    return defects


def main():
    kind, place, log_name, command = sys.argv[1:5]
    database = {"postgres": Postgres, "sqlite": Sqlite}[kind]
    first = database(place)
    if command == "check":
        logged = {}
        with open(log_name, encoding="ascii") as lines:
            for line in lines:
                client, number = map(int, line.split())
                logged[client] = max(number, logged.get(client, 0))
        defects = check(first.execute(QUERY), logged)
        for defect in defects:
            print(f"DEFECT: {defect}")
        sys.exit(1 if defects else 0)
    first.execute(CREATE)
    highest = dict(first.execute("SELECT client, max(number) FROM counter GROUP BY client"))
    log = os.open(log_name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    threads = []
    for client in range(1, int(sys.argv[5]) + 1):
        def work(client=client):
            count(database(place), client, highest.get(client, 0), log)
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()


main()
