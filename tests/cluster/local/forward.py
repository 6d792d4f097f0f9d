"""Loopback ports of the machine that lead into the fabric: forward.py DESCRIPTOR:PORT...

Every descriptor is a socket that listens outside: a socket stays in the network it was made in. This process is in the
fabric's, where it dials 127.0.0.1:PORT; being in its process ids too, it ends with it.
"""

import asyncio
import socket
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _serve(listening: socket.socket, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            return  # either side is gone: the other sees its connection closed
        finally:
            for one in writers:
                one.close()

    server = await asyncio.start_server(connected, sock=listening)
    await server.serve_forever()


async def main() -> None:
    pairs = [argument.split(":") for argument in sys.argv[1:]]
    await asyncio.gather(*(_serve(socket.socket(fileno=int(fd)), int(port)) for fd, port in pairs))


if __name__ == "__main__":
    asyncio.run(main())
