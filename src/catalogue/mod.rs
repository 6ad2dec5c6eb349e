//! Which tools there are, under which names, and how they came to be known.
//!
//! Changes when naming, discovery or the form of the catalogue changes. The call path only reads
//! an immutable snapshot.

mod definitions;
mod discovery;
mod naming;
mod schedule;
mod snapshot;

pub use definitions::{KnownTool, diff};
pub use discovery::{Discovery, DiscoveryError, DiscoverySettings};
pub use naming::{Collision, Names, expose};
pub use snapshot::{Catalogue, CatalogueEntry, CatalogueHandle, Lookup, NotFound};
