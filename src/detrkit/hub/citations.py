"""The papers behind each family of models, as BibTeX."""

from __future__ import annotations

__all__ = ["PAPERS", "papers_of"]

PAPERS = {
    "detr": """@inproceedings{carion2020end,
  title={End-to-End Object Detection with Transformers},
  author={Carion, Nicolas and Massa, Francisco and Synnaeve, Gabriel and Usunier, Nicolas and Kirillov, Alexander \
and Zagoruyko, Sergey},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2020},
  note={arXiv:2005.12872}
}""",
    "de_detr": """@inproceedings{wang2022towards,
  title={Towards Data-Efficient Detection Transformers},
  author={Wang, Wen and Zhang, Jing and Cao, Yang and Shen, Yongliang and Tao, Dacheng},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2022},
  note={arXiv:2203.09507}
}""",
    "conditional_detr": """@inproceedings{meng2021conditional,
  title={Conditional DETR for Fast Training Convergence},
  author={Meng, Depu and Chen, Xiaokang and Fan, Zejia and Zeng, Gang and Li, Houqiang and Yuan, Yuhui and Sun, Lei \
and Wang, Jingdong},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2021},
  note={arXiv:2108.06152}
}""",
    "deformable_detr": """@inproceedings{zhu2021deformable,
  title={Deformable {DETR}: Deformable Transformers for End-to-End Object Detection},
  author={Zhu, Xizhou and Su, Weijie and Lu, Lewei and Li, Bin and Wang, Xiaogang and Dai, Jifeng},
  booktitle={International Conference on Learning Representations (ICLR)},
  year={2021},
  note={arXiv:2010.04159}
}""",
    "dino": """@inproceedings{zhang2023dino,
  title={{DINO}: {DETR} with Improved DeNoising Anchor Boxes for End-to-End Object Detection},
  author={Zhang, Hao and Li, Feng and Liu, Shilong and Zhang, Lei and Su, Hang and Zhu, Jun and Ni, Lionel M. and \
Shum, Heung-Yeung},
  booktitle={International Conference on Learning Representations (ICLR)},
  year={2023},
  note={arXiv:2203.03605}
}""",
    "relation_detr": """@inproceedings{hou2024relation,
  title={Relation {DETR}: Exploring Explicit Position Relation Prior for Object Detection},
  author={Hou, Xiuquan and Liu, Meiqin and Zhang, Senlin and Wei, Ping and Chen, Badong and Lan, Xuguang},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2024},
  note={arXiv:2407.11699}
}""",
    "salience_detr": """@inproceedings{hou2024salience,
  title={Salience {DETR}: Enhancing Detection Transformer with Hierarchical Salience Filtering Refinement},
  author={Hou, Xiuquan and Liu, Meiqin and Zhang, Senlin and Wei, Ping and Chen, Badong},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2024},
  note={arXiv:2403.16131}
}""",
    "dape": """@misc{dape2026,
  title={Harmonizing Content-Position Encoding for Versatile Dense Visual Prediction},
  year={2026},
  note={AAAI 2026; reconstructed by detrkit from the published description}
}""",
}
"""Family -> the entry of its paper."""

# What a family rests on, beside its own paper.
_RESTS_ON = {
    "de_detr": ("detr",),
    "de_conditional_detr": ("de_detr", "conditional_detr"),
    "detr_panoptic": ("detr",),
    "deformable_detr_pp": ("deformable_detr", "relation_detr"),
    "relation_detr": ("dino",),
    "dape": ("relation_detr",),
}


def papers_of(family: str) -> list[str]:
    """The entries of a family's paper and of what it rests on."""
    names = [name for name in (family, *_RESTS_ON.get(family, ())) if name in PAPERS]
    return [PAPERS[name] for name in names]
