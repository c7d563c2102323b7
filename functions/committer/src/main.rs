//! Brings backups into the catalog, on AWS Lambda.

use strongroom_fleet::QueueName;

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::main(QueueName::Commits, strongroom_committer::handle)
}
