"""The contract between the processes: what travels (messages), as what bytes (codec), over which sockets (sockets).

Imports the standard library, zmq and msgpack, and nothing else of Penstock.
"""
