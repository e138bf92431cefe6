//! A request that one service process gives to another, with the client's connection. The service that dumps can be
//! confined by its service manager; what it starts would be confined, too, and a restored tree must not be. So it passes
//! what restores to an unconfined service for single clients, which goes on with the client as if it had accepted it.
use crust_engine::{Error, Kind, OnObject, Result, ResultExt};
use crust_kernel::peer::peer_cred;
use crust_rpc::{Client, Connection, Packet, Request};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Gives `request` and the connection it came on to the service at `address`. Whoever takes it answers.
pub(super) fn give(address: &Path, request: &Request, connection: &Connection) -> Result<()> {
    let restorer = Client::connect(address)
        .map_err(|e| {
            Error::new(Kind::Kernel, format!("the service that restores cannot be reached: {e}"))
                .help("is crust-restore.socket active? `systemctl start crust-restore.socket`")
        })
        .on_path(&address.display().to_string())?;
    restorer.connection().send(request, Some(connection.as_fd())).during("handing the request over")
}

/// Takes what [`give`] sent, from root or from our own user only: whoever hands a connection over speaks for its client.
pub(super) fn take(socket: OwnedFd) -> Result<(Request, Connection)> {
    let giver = Connection::new(socket);
    let uid = peer_cred(&giver).during("asking who hands a request over")?.uid;
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(Error::new(Kind::Permission, format!("user {uid} may not hand requests over"))
            .help("connect to the service's own socket"));
    }
    let what = match giver.receive::<Request>().during("taking a request over")? {
        Packet::Message(request, Some(client)) => {
            let connection = Connection::new(client);
            connection.check().during("taking a connection over")?;
            return Ok((request, connection));
        }
        Packet::Message(_, None) => "a request without its connection".to_owned(),
        Packet::Closed => "nothing".to_owned(),
        Packet::Garbage(why) => format!("a packet that is no request: {why}"),
    };
    Err(Error::new(Kind::BadRequest, format!("{what} was handed over"))
        .help("connect to the service's own socket: this one is for the service"))
}
