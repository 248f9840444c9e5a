//! Uploads in parts. Azure knows no uploads: blocks lie beside a blob's name until a list of them makes the
//! blob, or for a week.
//!
//! So the key is the upload; a data key is used by one upload only. Each put of a part is a block of its own
//! name, so that whoever makes the blob gets what they put and nobody else's. What is left over can't be removed,
//! and goes by itself.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use object_store::PutPayload;
use serde::Deserialize;
use ulid::Ulid;

use super::{
    super::{Chunks, Key, PartId, StorageError},
    Azure,
    request::Ask,
};

/// The committed blocks of a blob, as Azure tells them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockList {
    #[serde(default)]
    committed_blocks: Blocks,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blocks {
    #[serde(default)]
    block: Vec<Block>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Block {
    name: String,
}

/// A block's name on the wire. All that belong to a blob must be equally long, so what a part is called must
/// never change its length.
fn block_id(part: &PartId) -> String {
    BASE64_STANDARD.encode(&part.0)
}

impl Azure {
    /// As [`super::Store::put_part`].
    pub(super) async fn put_block(&self, key: &Key, bytes: Chunks) -> Result<PartId, StorageError> {
        let part = PartId(Ulid::r#gen().to_string());
        let ask = Ask::new(Method::PUT, self.url(key))
            .with_query("comp", "block")
            .with_query("blockid", block_id(&part))
            .with_body(PutPayload::from_iter(bytes));
        let put = self.writes.ask(&ask).await;
        put.map_err(|fault| fault.explain(&key.to_string()))?;
        Ok(part)
    }

    /// As [`super::Store::complete`]. A blob that is there already is one that these parts have made, or
    /// somebody else's.
    pub(super) async fn put_block_list(&self, key: &Key, parts: &[PartId]) -> Result<(), StorageError> {
        let blocks: String =
            parts.iter().map(|part| format!("<Uncommitted>{}</Uncommitted>", block_id(part))).collect();
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>");
        let ask = self.described(Ask::new(Method::PUT, self.url(key)), key);
        let ask = ask.with_query("comp", "blocklist").with_header("if-none-match", "*").with_body(list.into());
        match self.completions.ask(&ask).await {
            Ok(_) => Ok(()),
            Err(fault) if is_made(fault.code()) => self.check_made(key, parts).await,
            Err(fault) => Err(fault.explain(&key.to_string())),
        }
    }

    /// Whether the blob at `key` is made of these parts.
    async fn check_made(&self, key: &Key, parts: &[PartId]) -> Result<(), StorageError> {
        let about = key.to_string();
        let ask = Ask::new(Method::GET, self.url(key)).with_query("comp", "blocklist");
        let answer = match self.calls.ask(&ask.with_query("blocklisttype", "committed")).await {
            Ok(answer) => answer,
            // Without a blob or a block Azure knows nothing there: the parts are gone.
            Err(other) if other.code() == "BlobNotFound" => return Err(StorageError::NotFound(about)),
            Err(other) => return Err(other.explain(&about)),
        };
        let list: BlockList = quick_xml::de::from_reader(&*answer.body)
            .map_err(|error| StorageError::Unavailable(about.clone(), error.to_string()))?;
        let made = list.committed_blocks.block.into_iter().map(|block| block.name);
        if made.eq(parts.iter().map(block_id)) { Ok(()) } else { Err(StorageError::PartChanged(about)) }
    }
}

/// Whether Azure refused to make a blob because there is one, or because some of the blocks are not there.
fn is_made(code: &str) -> bool {
    matches!(code, "BlobAlreadyExists" | "ConditionNotMet" | "InvalidBlockList")
}
