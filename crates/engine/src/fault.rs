//! Failure on demand: `CRUST_FAULT=<stage>` makes a dump fail at that stage, so that tests can see that nothing is lost by it.
use crate::{Error, Kind, Result, Stage};

/// Fails if the environment asks for a failure at this stage.
///
/// # Errors
/// `Internal`, saying that it was asked for.
pub(crate) fn point(stage: Stage) -> Result<()> {
    let name = format!("{stage:?}").to_lowercase();
    match std::env::var_os("CRUST_FAULT") {
        Some(asked) if asked.to_str() == Some(&name) => {
            Err(Error::new(Kind::Internal, format!("CRUST_FAULT asked for a failure at {name}")).at(stage))
        }
        _ => Ok(()),
    }
}
