//! Standard streams by calls, for hosts that do not use the stream port.
use super::Empty;
use crate::agent::Agent;
use crate::failure::{invalid, Result};
use kata_protocol::grpc::{
    CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, TtyWinResizeRequest, WriteStreamRequest,
    WriteStreamResponse,
};
use std::rc::Rc;

/// Longest answer of one read; upstream's hosts ask for 32 KiB.
const MAX_READ_BYTES: usize = 1 << 20;

pub async fn write(agent: Rc<Agent>, request: WriteStreamRequest) -> Result<WriteStreamResponse> {
    let input = agent.container(&request.container_id)?.process(&request.exec_id)?.input()?;
    if request.data.is_empty() {
        input.close();
        return Ok(WriteStreamResponse { len: 0 });
    }
    input.write(&request.data).await?;
    Ok(WriteStreamResponse { len: request.data.len() as u32 })
}

pub async fn read(agent: Rc<Agent>, request: ReadStreamRequest, error: bool) -> Result<ReadStreamResponse> {
    let process = agent.container(&request.container_id)?.process(&request.exec_id)?;
    let Some(output) = process.output(error) else {
        // A terminal has no standard error: it is at its end from the start.
        return Ok(ReadStreamResponse::default());
    };
    if request.len == 0 {
        return Err(invalid("stdio: a read of 0 bytes cannot be told from the end"));
    }
    Ok(ReadStreamResponse { data: output.read((request.len as usize).min(MAX_READ_BYTES)).await })
}

pub fn close(agent: &Rc<Agent>, request: CloseStdinRequest) -> Result<Empty> {
    agent.container(&request.container_id)?.process(&request.exec_id)?.input()?.close();
    Ok(())
}

pub fn resize(agent: &Rc<Agent>, request: TtyWinResizeRequest) -> Result<Empty> {
    let process = agent.container(&request.container_id)?.process(&request.exec_id)?;
    process.resize_terminal(request.row, request.column)
}
