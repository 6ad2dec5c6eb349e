//! What there is, under which names, and how it came to be known: tools, prompts, resources and
//! templates.
//!
//! Changes when naming, discovery or the form of the catalogue changes. The call path only reads
//! an immutable snapshot.

mod build;
mod definitions;
mod discovery;
mod error;
mod left_out;
mod lists;
mod naming;
mod offers;
mod page;
mod recording;
mod schedule;
mod snapshot;
#[cfg(test)]
mod tests;
mod uri;
mod view;

pub use definitions::{KnownTool, diff};
pub use discovery::{Discovery, DiscoverySettings};
pub use error::DiscoveryError;
pub use left_out::Lack;
pub use naming::{Collision, Names, expose};
pub use offers::{PromptEntry, ResourceEntry, ResourceRoute, ResourceServer, TemplateEntry};
pub use page::{CursorError, OfferedList, Page};
pub use recording::{Recording, RecordingSettings};
pub use snapshot::{
    Catalogue, CatalogueEntry, CatalogueHandle, Entries, ListedTool, Lookup, NotFound,
};
pub use view::ViewCatalogue;
