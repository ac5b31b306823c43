#include "cri/state_book.h"

#include <utility>

namespace lamina::cri {

void StateBook::Restore(persist::SandboxState state) {
  MutexLock writing(write_mutex_);
  closed_ = false;
  MutexLock lock(mutex_);
  state_ = std::move(state);
}

absl::Status StateBook::Change(const Edit& edit) { return Write(edit, false); }

absl::Status StateBook::Record(const Edit& edit) { return Write(edit, true); }

absl::Status StateBook::Write(const Edit& edit, bool keep) {
  MutexLock writing(write_mutex_);
  persist::SandboxState next = Get();
  edit(next);
  const absl::Status saved = closed_ ? absl::OkStatus() : store_.Save(next);
  if (!saved.ok() && !keep) return saved;
  MutexLock lock(mutex_);
  state_ = std::move(next);
  return saved;
}

void StateBook::Close() {
  MutexLock writing(write_mutex_);
  closed_ = true;
}

persist::SandboxState StateBook::Get() const {
  MutexLock lock(mutex_);
  return state_;
}

std::string StateBook::path() const {
  return store_.Path(Look([](const persist::SandboxState& state) { return state.sandbox_id; }));
}

}  // namespace lamina::cri
