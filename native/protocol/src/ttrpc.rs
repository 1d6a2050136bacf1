//! ttrpc framing, client and server.
