//! Removing, by a request that Azure itself refuses after a deadline: one that carries a signature that ends
//! with it. A replica that stalls between its last check and its sending can do no harm then.

use http::Method;

use super::{
    super::{Key, StorageError, StoreTime},
    Azure,
    request::Ask,
    sas::Permission,
};

impl Azure {
    /// As [`super::Store::delete`].
    pub(super) async fn remove(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        match self.ask_until(deadline, Permission::Delete, key, Ask::new(Method::DELETE, self.url(key))).await {
            Err(StorageError::NotFound(_)) => Ok(()),
            done => done,
        }
    }
}
