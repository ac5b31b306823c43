#include "persist/state_store.h"

#include "base/safe_id.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::persist {

absl::Status StateStore::Save(const SandboxState& state) {
  RETURN_IF_ERROR(CheckSafeId(state.sandbox_id, "sandbox id"));
  const std::string dir = root_ + "/" + state.sandbox_id, path = Path(state.sandbox_id);
  const bool is_new = !fs_.Exists(path);
  absl::Status status = fs_.MakeDirectories(dir, 0700);
  if (status.ok()) status = WriteFileAtomically(fs_, path, EncodeState(state), 0600);
  // A new directory is safe only when its parents name it.
  if (status.ok() && is_new) status = fs_.SyncDirectory(root_);
  if (status.ok() && is_new) status = fs_.SyncDirectory(root_.substr(0, root_.rfind('/')));
  if (!status.ok() && is_new) fs_.RemoveTree(dir).IgnoreError();
  return Annotate(status, "save the sandbox's state");
}

absl::StatusOr<SandboxState> StateStore::Load(const std::string& id) const {
  RETURN_IF_ERROR(CheckSafeId(id, "sandbox id"));
  ASSIGN_OR_RETURN(const std::string content, fs_.Read(Path(id), 16 * kMiB));
  return DecodeState(content, Path(id));
}

absl::StatusOr<std::vector<std::string>> StateStore::List() const {
  absl::StatusOr<std::vector<std::string>> names = fs_.List(root_);
  if (names.status().code() == absl::StatusCode::kNotFound) return std::vector<std::string>();
  RETURN_IF_ERROR(names.status());
  std::erase_if(*names, [this](const std::string& id) { return !IsSafeId(id) || !fs_.Exists(Path(id)); });
  return names;
}

absl::Status StateStore::Remove(const std::string& id) {
  RETURN_IF_ERROR(CheckSafeId(id, "sandbox id"));
  const std::string dir = root_ + "/" + id;
  if (!fs_.Exists(dir)) return absl::OkStatus();
  // The file first: a directory without one is nothing, whenever this is interrupted.
  RETURN_IF_ERROR(fs_.Remove(Path(id)));
  RETURN_IF_ERROR(fs_.RemoveTree(dir));
  return fs_.SyncDirectory(root_);
}

}  // namespace lamina::persist
