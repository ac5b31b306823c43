#include "persist/state_store.h"

#include "base/status.h"
#include "base/units.h"

namespace lamina::persist {

absl::Status StateStore::Save(const SandboxState& state) {
  if (!IsSafeId(state.sandbox_id))
    return InvalidArgument("sandbox id \"{}\" is not safe as a file name", state.sandbox_id);
  RETURN_IF_ERROR(fs_.MakeDirectories(root_ + "/" + state.sandbox_id, 0700));
  return Annotate(WriteFileAtomically(fs_, Path(state.sandbox_id), EncodeState(state), 0600),
                  "save the sandbox's state");
}

absl::StatusOr<SandboxState> StateStore::Load(const std::string& id) const {
  if (!IsSafeId(id)) return InvalidArgument("sandbox id \"{}\" is not safe as a file name", id);
  ASSIGN_OR_RETURN(const std::string content, fs_.Read(Path(id), 16 * kMiB));
  return DecodeState(content, Path(id));
}

absl::StatusOr<std::vector<std::string>> StateStore::List() const {
  absl::StatusOr<std::vector<std::string>> names = fs_.List(root_);
  if (names.status().code() == absl::StatusCode::kNotFound) return std::vector<std::string>();
  return names;
}

absl::Status StateStore::Remove(const std::string& id) {
  if (!IsSafeId(id)) return InvalidArgument("sandbox id \"{}\" is not safe as a file name", id);
  RETURN_IF_ERROR(fs_.RemoveTree(root_ + "/" + id));
  return fs_.Exists(root_) ? fs_.SyncDirectory(root_) : absl::OkStatus();
}

}  // namespace lamina::persist
